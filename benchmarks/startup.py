"""Seconds until physrep.fit shows its help, lists choices, refuses a mistake and has taken its first training step.

`make bench` or `python -m benchmarks.startup`. Plain is a script that imports Lightning at its top, as scripts do, then
parses its arguments or takes a step of one linear layer. The two take turns, each in a process of its own; medians.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

PLAIN = """
import argparse
import torch
from lightning.pytorch import LightningModule, Trainer

class Line(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
    def training_step(self, x, i):
        return self.layer(x).square().mean()
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())

parser = argparse.ArgumentParser()
parser.add_argument("--root")
trainer = Trainer(max_steps=1, accelerator="cpu", default_root_dir=parser.parse_args().root)
trainer.fit(Line(), torch.utils.data.DataLoader(torch.randn(8, 4)))
"""
REPEATS = 5
FIT = [sys.executable, "-m", "physrep.fit"]


def seconds(*command: str) -> float:
    began = time.perf_counter()
    subprocess.run(command, capture_output=True, check=False)
    return time.perf_counter() - began


def first_step(root: Path, runs: Path) -> float:
    """Seconds until the loss of a first step lies in metrics.csv."""
    began = time.perf_counter()
    command = [*FIT, "data=shear_flow_tiny", f"data.root={root}", f"runs={runs}", "trainer.log_every_n_steps=1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not any("train/loss" in file.read_text() for file in runs.glob("*/*/metrics.csv")):
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command)} ended before its first step")
            time.sleep(0.01)
        took = time.perf_counter() - began
        process.kill()
    return took


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        root, script = Path(temporary), Path(temporary) / "plain.py"
        script.write_text(PLAIN)
        simulate = [sys.executable, "-m", "physrep.simulate", "system=shear_flow", "preset=tiny", f"root={root}"]
        subprocess.run(simulate, capture_output=True, check=True)
        plain, away = [sys.executable, str(script)], f"--root={root}"
        rows = {
            "--help": (0.5, lambda i: seconds(*FIT, "--help"), lambda i: seconds(*plain, "--help")),
            "--list": (0.5, lambda i: seconds(*FIT, "--list"), lambda i: seconds(*plain, "--help")),
            "mistake": (0.5, lambda i: seconds(*FIT, "trainer.max_step=3"), lambda i: seconds(*plain, "--rooot")),
            "first step": (8, lambda i: first_step(root, root / f"{i}"), lambda i: seconds(*plain, away)),
        }
        took = {name: [[work(i) for work in works] for i in range(REPEATS)] for name, (_, *works) in rows.items()}
    print(f"seconds, the median of {REPEATS}")
    for name, (bound, *_) in rows.items():
        ours, theirs = (sorted(column)[REPEATS // 2] for column in zip(*took[name], strict=True))
        print(f"{name:10s} {ours:6.2f}, bound {bound}; plain {theirs:6.2f}; ratio {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
