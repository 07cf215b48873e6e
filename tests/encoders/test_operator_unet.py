"""DISCO's operator: published sizes, the U-Net written out, zero for zero, what it does at the border."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from physrep.encoders.operator_unet import OperatorUNet


def sizes(operator):
    return {name: w.numel() for name, w in operator.named_parameters()}


@pytest.mark.parametrize(
    ("channels", "periodic", "adapters", "total"),
    [(11, True, 1_584, 159_632), (4, True, 576, 158_624), (4, False, 648, 158_696)],
)
def test_weight_counts_are_the_published_ones(channels, periodic, adapters, total):
    layers = sizes(OperatorUNet(channels, periodic=periodic))
    assert sum(layers.values()) == total
    assert layers["read.weight"] + layers["write.weight"] == adapters
    assert layers["expand.weight"] + layers["contract.weight"] == 65_536
    assert total - adapters - 65_536 == 92_512


def written_out(w, u, levels, mode):
    """The operator for one state [C, H, W] from its layers' weights, its 3x3 kernels in twos as grouped ones."""

    def conv3(x, name, groups=1):
        padded = torch.tensor(np.pad(x.numpy(), ((0, 0), (1, 1), (1, 1)), mode=mode))
        kernel = w[name + ".weight"]
        if name.startswith("up."):
            kernel, groups = kernel.reshape(-1, 2, 3, 3), len(kernel) // 2
        return F.conv2d(padded[None], kernel, groups=groups)[0]

    def act(x):
        parts = x.reshape(4, -1)
        parts = (parts - parts.mean(1, keepdim=True)) / (parts.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        return F.gelu(parts).reshape(x.shape)

    if mode == "reflect":
        mask = torch.ones(1, *u.shape[1:])
        mask[:, 1:-1, 1:-1] = 0
        u = torch.cat([u, mask])
    x = act(conv3(act(conv3(u, "read")), "first"))
    skips = []
    for i in range(levels):
        skips.append(x)
        x = F.conv2d(x[None], w[f"down.{i}.coarsen.weight"], stride=2)[0]
        x = act(conv3(x, f"down.{i}.mix", groups=len(x)))
    wide = torch.einsum("oi,ihw->ohw", w["expand.weight"][:, :, 0, 0], x)
    x = x + torch.einsum("oi,ihw->ohw", w["contract.weight"][:, :, 0, 0], act(wide))
    for i in range(levels):
        x = F.conv_transpose2d(x[None], w[f"up.{i}.refine.weight"], stride=2)[0]
        x = act(conv3(torch.cat([x, skips.pop()]), f"up.{i}.mix"))
    return conv3(act(conv3(x, "last")), "write")


@pytest.mark.parametrize(("periodic", "mode"), [(True, "wrap"), (False, "reflect")])
def test_equals_the_operator_written_out(periodic, mode):
    torch.manual_seed(0)
    operator = OperatorUNet(3, 4, 2, periodic)
    states = torch.randn(2, 3, 16, 8)
    with torch.no_grad():
        rates = operator(states)
        for state, rate in zip(states, rates, strict=True):
            torch.testing.assert_close(rate, written_out(operator.state_dict(), state, 2, mode), atol=1e-5, rtol=1e-5)


def test_weights_zero_give_zero():
    operator = OperatorUNet(2, 4, 1, periodic=False)
    for w in operator.parameters():
        torch.nn.init.zeros_(w)
    assert torch.equal(operator(torch.randn(1, 2, 8, 8)), torch.zeros(1, 2, 8, 8))


def test_a_shift_commutes_with_it_where_all_is_periodic_and_only_there():
    torch.manual_seed(0)
    state = torch.randn(1, 2, 16, 16)
    for periodic in (True, False):
        operator = OperatorUNet(2, 4, 2, periodic)
        with torch.no_grad():
            gap = (operator(state.roll((4, 8), (2, 3))) - operator(state).roll((4, 8), (2, 3))).abs().max()
        assert (gap < 1e-5) == periodic
