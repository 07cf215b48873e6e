"""The paper's encoder: counts, shapes, blocks against plain PyTorch modules."""

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from physrep.encoders.base import tokens
from physrep.encoders.conv import Block, ConvEncoder, ConvPredictor
from physrep.errors import UserError


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
