"""The optimiser's groups and the schedule's values."""

import math

import pytest
import torch
from torch import nn

from physrep.optim import adamw, warmup_cosine


def test_biases_and_norms_do_not_decay():
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Conv1d(2, 2, 3))
    decayed, spared = adamw(net, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95)).param_groups
    assert {tuple(w.shape) for w in decayed["params"]} == {(4, 3), (2, 2, 3)}
    assert decayed["weight_decay"] == 0.1
    assert {tuple(w.shape) for w in spared["params"]} == {(4,), (2,)}
    assert spared["weight_decay"] == 0.0
    assert len(decayed["params"]) + len(spared["params"]) == len(list(net.parameters()))


@pytest.mark.parametrize("warmup", [0, 10, 500])
def test_warmup_then_cosine(warmup):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    schedule = warmup_cosine(optimizer, steps=100, warmup=warmup)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    up = min(warmup, 99)
    for step, rate in enumerate(rates):
        if step < up:
            want = 0.2 * (1 / (up + 1) + (1 - 1 / (up + 1)) * step / up)
        else:
            want = 0.2e-3 + (0.2 - 0.2e-3) * (1 + math.cos(math.pi * (step - up) / (100 - up))) / 2
        assert rate == pytest.approx(want, rel=1e-6), step
