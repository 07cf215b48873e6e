"""Training steps per second of conv_tiny, with our depthwise backward and with PyTorch's own, in one process.

`make bench` or `python -m benchmarks.step`.
"""

from __future__ import annotations

import time

import torch
from torch.nn import functional as F

from physrep.config import build, compose
from physrep.encoders import conv
from physrep.encoders.depthwise import depthwise_conv


def native(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.conv3d(x, weight, bias, padding=[k // 2 for k in weight.shape[2:]], groups=x.shape[1])


def seconds(depthwise: object, objective_name: str, steps: int) -> float:
    conv.depthwise_conv = depthwise  # type: ignore[assignment]
    cfg = compose(["encoder=conv_tiny", f"objective={objective_name}"])
    torch.manual_seed(0)
    objective = build(cfg.objective, encoder=build(cfg.encoder, channels=4), seed=0)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3)
    clip = torch.randn(32, 4, 32, 64, 64)
    batch = {"clip": clip, "theta": torch.zeros(32, 2), "trajectory": torch.arange(32)}
    times = []
    for _ in range(steps + 1):
        began = time.perf_counter()
        optimizer.zero_grad()
        objective.losses(batch)["loss"].backward()
        optimizer.step()
        times.append(time.perf_counter() - began)
    return sorted(times[1:])[steps // 2]


def main() -> None:
    print(f"{torch.get_num_threads()} threads, batch 32 of two clips 4 x 16 x 64 x 64, float32, median step")
    for name in ("jepa", "views"):
        ours, plain = seconds(depthwise_conv, name, 8), seconds(native, name, 3)
        print(f"{name:5s} ours {1 / ours:6.2f} steps/s, PyTorch's {1 / plain:6.2f} steps/s, {plain / ours:5.1f} x")


if __name__ == "__main__":
    main()
