"""Windows per second of embedding a split for the probes, from its files to the cache: ours beside a plain loop.

`make bench` or `python -m benchmarks.embed`. It writes a small set (64 x 128, 4 channels, 25 frames) to a temporary
folder. Plain: h5py's windows, 32 at a time, through the plain form of the encoder, without gradients, kept as float16;
it writes nothing. Rows take turns; their best round counts.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.loader import DEVICE, Plain, Row, make, seconds
from benchmarks.plain import plain
from physrep import memory
from physrep.config import compose
from physrep.data.shear_flow import ShearFlow
from physrep.frozen import Frozen
from physrep.probes.embed import Source, embed, precision
from physrep.run import build_objective

FRAMES, BATCH, STEP = 16, 32, 1
ENCODERS = {"conv_tiny": "views", "vit_nano": "videomae", "avit_nano": "mpp"}


def rows_of(folder: Path, encoder: str) -> tuple[int, dict[str, Row]]:
    """Return how many windows there are, and what embeds them: the plain form's tokens, and those of every layer."""
    data = ShearFlow(folder.name, root=str(folder.parent), frames=FRAMES, batch_size=BATCH, eval_step=STEP)
    data.setup("probe")
    torch.manual_seed(0)
    model = build_objective(compose([f"encoder={encoder}", f"objective={ENCODERS[encoder]}"]), data.meta())
    ours, theirs = (Frozen(m, data.meta(), step=0).to(DEVICE) for m in (model, plain(model)))
    layers, windows = tuple(ours.layers()), data.windows("train", STEP)

    def by_plain() -> Tensor:
        loader = DataLoader(Plain(data.splits["train"], windows, FRAMES, finish=False), batch_size=BATCH)
        fast = precision(DEVICE) is torch.bfloat16
        with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16, enabled=fast):
            return torch.cat([theirs.encode(clip.to(DEVICE)).half() for clip in loader]).cpu()

    def by_ours(of: tuple[str, ...], passes: bool) -> list[Tensor]:
        source = Source(encoder, encoder, partial(ours.encode, normalised=True), "weights", model=ours)
        every = [replace(source, layers=() if passes else of, layer=layer) for layer in ("", *of)]
        with tempfile.TemporaryDirectory() as cache:
            return [embed(each, data, "train", Path(cache)).tokens for each in every]

    return len(windows), {
        "plain": by_plain,
        "physrep": partial(by_ours, (), passes=False),
        "physrep, all layers too, a pass each": partial(by_ours, layers, passes=True),
        "physrep, all layers too": partial(by_ours, layers, passes=False),
    }


def main() -> None:
    memory.keep()  # as probe does; plain has it, too
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "small"
        make(folder, ShearFlow, {"tracer": 0, "pressure": 0, "velocity": 1}, (8, 25, 64, 128), 2)
        for encoder in ENCODERS:
            number, rows = rows_of(folder, encoder)
            times = seconds(rows)
            print(f"\n{encoder}: {number} windows of 4 channels, {FRAMES} frames, 64 x 128, on {DEVICE}")
            print(f"{'':40}windows/s   x plain")
            for name, took in times.items():
                print(f"{name:40}{number / took:9.1f}{times['plain'] / took:10.1f}")


if __name__ == "__main__":
    main()
