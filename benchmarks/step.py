"""Training steps per second of conv_tiny under every objective, on random clips of the demo's size.

`make bench` or `python -m benchmarks.step`.
"""

from __future__ import annotations

import time

import torch

from physrep.config import build, compose

STEPS = 12


def seconds(name: str) -> float:
    cfg = compose(["encoder=conv_tiny", f"objective={name}"])
    torch.manual_seed(0)
    objective = build(cfg.objective, encoder=build(cfg.encoder, channels=4), seed=0)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3)
    batch = {"clip": torch.randn(32, 4, 16, 64, 64), "theta": torch.zeros(32, 2), "trajectory": torch.arange(32)}
    times = []
    for _ in range(STEPS + 2):
        began = time.perf_counter()
        optimizer.zero_grad()
        objective.losses(batch)["loss"].backward()
        optimizer.step()
        times.append(time.perf_counter() - began)
    return sorted(times[2:])[STEPS // 2]


def main() -> None:
    print(f"{torch.get_num_threads()} threads, batch 32 of two clips 4 x 8 x 64 x 64, float32, median step")
    for name in ("jepa", "views"):
        print(f"{name:6s} {1 / seconds(name):5.2f} steps/s")


if __name__ == "__main__":
    main()
