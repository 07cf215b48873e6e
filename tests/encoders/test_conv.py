"""The paper's encoder: counts, shapes, all of it against the plain formulation."""

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from benchmarks.plain import plain
from physrep.encoders import depthwise, pointwise
from physrep.encoders.base import tokens
from physrep.encoders.conv import Block, ConvEncoder, ConvPredictor
from physrep.errors import UserError
from physrep.objectives.jepa import Jepa
from physrep.optim import adamw


def weights(module):
    return sum(w.numel() for w in module.parameters())


def test_weight_counts_are_the_published_ones():
    assert weights(ConvEncoder(4)) == 2_466_928
    assert weights(ConvEncoder(11)) == 2_468_720
    assert weights(ConvPredictor(128, 256)) == 801_664


def test_stage_counts_are_the_published_ones():
    encoder = ConvEncoder(4)
    assert weights(encoder.stem) == 1_072
    assert [weights(d) for d in encoder.down] == [4_160, 16_512, 65_792, 131_456]
    assert [weights(s) for s in encoder.stages] == [23_040, 58_368, 165_888, 1_585_152, 415_488]


@pytest.mark.slow
def test_published_input_gives_128_by_14_by_14():
    encoder = ConvEncoder(4)
    with torch.inference_mode():
        features = encoder(torch.randn(1, 4, 16, 224, 224))
        assert features.shape == (1, 128, 1, 14, 14)
        assert ConvPredictor(128, 256)(features).shape == features.shape


def test_small_input_and_tokens():
    features = ConvEncoder(3)(torch.randn(2, 3, 16, 32, 48))
    assert features.shape == (2, 128, 1, 2, 3)
    assert torch.equal(tokens(features)[1, 4], features[1, :, 0, 1, 1])


def test_block_equals_plain_modules():
    torch.manual_seed(0)
    block = Block(6, (3, 5, 7), scale=0.7)
    conv = nn.Conv3d(6, 6, (3, 5, 7), padding="same", groups=6)
    assert conv.weight.shape == block.weight.shape
    conv.load_state_dict({"weight": block.weight, "bias": block.bias})
    norm = nn.LayerNorm(6, eps=1e-6)
    x = torch.randn(2, 6, 4, 8, 8)
    y = norm(conv(x).permute(0, 2, 3, 4, 1))
    y = 0.7 * block.contract(nn.functional.gelu(block.expand(y)))
    torch.testing.assert_close(block(x), x + y.permute(0, 4, 1, 2, 3), atol=1e-5, rtol=1e-5)


@pytest.fixture(params=["whole", "in pieces"])
def pieces(request, monkeypatch):
    """Hidden layers whole, as small maps have them, or in pieces, as large ones; gradients by tiles of a few rows."""
    monkeypatch.setattr(depthwise, "TILE", 2**12)
    if request.param == "in pieces":
        monkeypatch.setattr(pointwise, "WHOLE", 0)
        monkeypatch.setattr(pointwise, "_pieces", lambda rows: rows.split(500))


def small_jepa():
    torch.manual_seed(0)
    kernels, strides = ((7, 7, 7), (3, 5, 7), (7, 7)), ((1, 1, 1), (2, 2, 2), (2, 2, 2))
    return Jepa(ConvEncoder(3, (8, 16, 16), (2, 1, 1), strides=strides, kernels=kernels, scale=0.3), chunks=2)


def gradients(model, clip, **autocast):
    model.zero_grad()
    with torch.autocast("cpu", **autocast):
        loss = model.losses({"clip": clip})["loss"]
    loss.backward()
    return [w.grad.clone() for w in model.parameters()]


def off(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("channels_last", [False, True])
def test_outputs_and_gradients_are_the_plain_ones(pieces, channels_last):
    ours, clip = small_jepa(), torch.randn(2, 3, 8, 16, 20)
    theirs = plain(ours, channels_last)
    a, b = (model.encoder(clip[:, :, :4]).detach() for model in (ours, theirs))
    assert float((a - b).abs().max() / b.abs().max()) < 1e-5
    assert max(map(off, *(gradients(model, clip, enabled=False) for model in (ours, theirs)))) < 1e-4


def test_gradients_are_exact_in_float64(pieces):
    ours, clip = small_jepa().encoder.double(), torch.randn(2, 3, 4, 16, 20, dtype=torch.float64)
    theirs = plain(ours)
    for model in (ours, theirs):
        model(clip).pow(3).mean().backward()
    assert max(off(a.grad, b.grad) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)) < 1e-11


def test_bfloat16_is_no_further_from_float32_than_plain_bfloat16(pieces):
    ours, clip = small_jepa(), torch.randn(2, 3, 8, 16, 20)
    truth = gradients(plain(ours), clip, enabled=False)
    a, b = (list(map(off, gradients(m, clip, dtype=torch.bfloat16), truth)) for m in (ours, plain(ours)))
    assert sum(a) < 1.05 * sum(b)
    assert max(a) < 1.05 * max(b) < 0.2


def test_fifty_steps_follow_the_plain_curve(pieces):
    ours, curves = small_jepa(), []
    for model in (ours, plain(ours)):
        optimizer, draw = adamw(model, 1e-3, 0.05, (0.9, 0.95)), torch.Generator().manual_seed(1)
        curve = []
        for _ in range(50):
            loss = model.losses({"clip": torch.randn(2, 3, 8, 8, 8, generator=draw)})["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(float(loss.detach()))
        curves.append(curve)
    assert curves[0][-1] < 0.9 * curves[0][0]
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


def test_gradients_are_bitwise_the_same_again(pieces):
    model, clip = small_jepa(), torch.randn(2, 3, 8, 16, 20)
    assert all(map(torch.equal, gradients(model, clip, enabled=False), gradients(model, clip, enabled=False)))


def test_pieces_keep_little_and_are_differentiated_once(pieces, request):
    """Beside input and weights only the convolution's output, where whole layers keep eleven times as much."""
    block, x, kept = Block(8, (3, 3, 3), scale=0.5), torch.randn(1, 8, 4, 16, 16, requires_grad=True), {}

    def keep(t):
        kept[t.data_ptr()] = t.numel() / x.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = block(x)
    large = sum(n for n in kept.values() if n >= 1)
    if request.node.callspec.id == "whole":
        assert large == 12
        return
    assert large == 2
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_blocks_compile():
    block, x = Block(6, (3, 5, 7), scale=0.7), torch.randn(2, 6, 4, 8, 8)
    results = []
    for form in (block, torch.compile(block, backend="aot_eager", fullgraph=True)):
        block.zero_grad()
        form(x).square().sum().backward()
        results.append([w.grad.clone() for w in block.parameters()])
    assert max(map(off, *results)) < 1e-6


def test_first_initialisation_is_pytorchs():
    torch.manual_seed(0)
    drawn = torch.cat([Block(64, (7, 7, 7)).weight.flatten() for _ in range(3)])
    plain = torch.cat([nn.Conv3d(64, 64, 7, groups=64).weight.detach().flatten() for _ in range(3)])
    assert float(drawn.abs().max()) == pytest.approx(float(plain.abs().max()), rel=1e-3)
    assert float(drawn.std()) == pytest.approx(float(plain.std()), rel=1e-2)


def test_clip_that_the_strides_do_not_divide_is_refused():
    with pytest.raises(UserError, match=r"strides \[16, 16, 16\] do not divide a clip of \[8, 32, 32\]"):
        ConvEncoder(4)(torch.randn(1, 4, 8, 32, 32))
    with pytest.raises(UserError, match="3 widths, 2 depths, 5 strides"):
        ConvEncoder(4, widths=(8, 8, 8), depths=(1, 1))


def test_conv_tiny_is_small_and_gradients_reach_every_weight():
    from physrep.config import build

    node = OmegaConf.load("conf/encoder/conv_tiny.yaml")
    encoder = build(node, channels=4)
    assert weights(encoder) < 500_000
    features = encoder(torch.randn(2, 4, 8, 64, 128))
    assert features.shape == (2, 128, 1, 8, 16)
    features.square().sum().backward()
    assert all(w.grad is not None and w.grad.abs().max() > 0 for w in encoder.parameters())
