"""The optimiser and its schedule."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR


def adamw(module: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW in two groups: matrices and kernels decay, biases, norms and layer scales (one axis) do not."""
    weights = [w for w in module.parameters() if w.requires_grad]
    groups = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": weight_decay},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def warmup_cosine(optimizer: torch.optim.Optimizer, steps: int, warmup: int, final: float = 1e-3) -> LRScheduler:
    """Linear warm-up over `warmup` optimiser steps, then a cosine down to `final` times the peak at `steps`."""
    warmup = min(warmup, steps - 1)
    peak = optimizer.param_groups[0]["lr"]
    cosine = CosineAnnealingLR(optimizer, max(steps - warmup, 1), eta_min=peak * final)
    if warmup < 1:
        return cosine
    return SequentialLR(optimizer, [LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup), cosine], [warmup])
