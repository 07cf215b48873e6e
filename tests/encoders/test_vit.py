"""The vision transformer: published counts, positions, and visible tokens that know nothing of the others."""

import math

import pytest
import torch
from omegaconf import OmegaConf

from physrep.config import build
from physrep.encoders.base import tokens
from physrep.encoders.vit import VisionTransformer, cells, pick, table
from physrep.errors import UserError

CPU = torch.device("cpu")


def small(channels=3, positions="sincos3d", **options):
    torch.manual_seed(0)
    return VisionTransformer(channels, 24, 2, 4, [4, 8], 2, positions, **options)


def shipped(name, channels):
    with torch.device("meta"):
        return build(OmegaConf.load(f"conf/encoder/{name}.yaml"), channels=channels)


def weights(module):
    return sum(w.numel() for w in module.parameters())


def key_biases(encoder):
    return len(encoder.blocks) * encoder.width


@pytest.mark.parametrize(
    ("name", "channels", "count"),
    [("vit_small", 4, 22_076_544), ("vit_small", 11, 23_452_800)],  # the paper's baseline, which has no key bias
)
def test_counts_are_the_papers_but_for_the_key_bias(name, channels, count):
    encoder = shipped(name, channels)
    assert weights(encoder) - key_biases(encoder) == count


@pytest.mark.parametrize(
    ("name", "channels", "millions"),
    [("vit_tiny", 11, 6.42), ("vit_small", 11, 23.46), ("vit_small", 3, 21.88), ("vit_base", 3, 86.24)],
)
def test_counts_are_the_published_ones(name, channels, millions):
    assert round(weights(shipped(name, channels)) / 1e6, 2) == millions


def test_nano_is_as_small_as_conv_tiny_and_gradients_reach_every_weight():
    encoder = build(OmegaConf.load("conf/encoder/vit_nano.yaml"), channels=4)
    assert 400_000 < weights(encoder) < 800_000
    features = encoder(torch.randn(2, 4, 8, 64, 64))
    assert features.shape == (2, 96, 2, 8, 8)
    (features * torch.randn_like(features)).sum().backward()
    assert all(w.grad is not None and w.grad.abs().max() > 0 for w in encoder.parameters())


def test_forward_lays_the_attended_tokens_out_over_the_grid():
    encoder, clip = small(), torch.randn(2, 3, 4, 12, 16)
    features = encoder(clip)
    assert features.shape == (2, 24, *encoder.grid(clip)) == (2, 24, 2, 3, 2)
    torch.testing.assert_close(tokens(features), encoder.attend(encoder.embed(clip)))


def test_a_token_is_the_linear_map_of_its_own_tubelet_and_its_position():
    encoder, clip = small(), torch.randn(2, 3, 4, 12, 16)
    weight = encoder.patch.weight
    place = table("sincos3d", (2, 3, 2), 24, CPU)
    embedded = encoder.embed(clip)
    for n, (t, h, w) in enumerate((t, h, w) for t in range(2) for h in range(3) for w in range(2)):
        tubelet = clip[:, :, 2 * t : 2 * t + 2, 4 * h : 4 * h + 4, 8 * w : 8 * w + 8]
        expected = torch.einsum("bcthw,dcthw->bd", tubelet, weight) + encoder.patch.bias + place[n]
        torch.testing.assert_close(embedded[:, n], expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(cells(clip, encoder.cell)[:, t, h, w], tubelet)
        torch.testing.assert_close(pick(clip, encoder.cell, torch.full((2, 1), n))[:, 0], tubelet)


@pytest.mark.parametrize("positions", ["sinusoid", "sincos3d"])
def test_all_visible_is_forward_and_the_order_does_not_matter(positions):
    encoder, clip = small(positions=positions), torch.randn(2, 3, 4, 12, 16)
    every = torch.arange(12).expand(2, -1)
    whole = encoder.visible(clip, every)
    torch.testing.assert_close(whole, tokens(encoder(clip)), atol=1e-5, rtol=1e-5)
    order = torch.stack([torch.randperm(12), torch.randperm(12)])
    torch.testing.assert_close(
        encoder.visible(clip, order), whole.gather(1, order[..., None].expand(-1, -1, 24)), atol=1e-5, rtol=1e-5
    )


def test_visible_tokens_are_those_of_the_embedding_and_know_nothing_of_the_others():
    encoder, clip = small(), torch.randn(2, 3, 4, 12, 16)
    keep = torch.tensor([[7, 0, 3], [2, 11, 5]])
    seen = encoder.visible(clip, keep)
    picked = torch.stack([encoder.embed(clip)[b, keep[b]] for b in range(2)])
    torch.testing.assert_close(seen, encoder.attend(picked), atol=1e-5, rtol=1e-5)
    other = torch.full_like(clip, torch.nan)
    for b in range(2):
        for n in keep[b].tolist():
            t, h, w = n // 6, n // 2 % 3, n % 2
            at = b, slice(None), slice(2 * t, 2 * t + 2), slice(4 * h, 4 * h + 4), slice(8 * w, 8 * w + 8)
            other[at] = clip[at]
    assert torch.equal(encoder.visible(other, keep), seen)


@pytest.mark.parametrize("kind", ["sinusoid", "sincos3d"])
@pytest.mark.parametrize(("grid", "width"), [((8, 14, 14), 384), ((2, 8, 8), 96), ((2, 3, 2), 16), ((1, 1, 1), 7)])
def test_positions_are_distinct(kind, grid, width):
    places = table(kind, grid, width, CPU)
    assert places.shape == (math.prod(grid), width)
    assert places.abs().max() <= 1
    away = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist") + torch.eye(len(places))
    assert away.min() > 0.1


def test_sinusoid_is_videomaes_table():
    places = table("sinusoid", (2, 3, 4), 10, CPU)
    for n in range(24):
        for j in range(10):
            angle = n / 10_000 ** (2 * (j // 2) / 10)
            assert float(places[n, j]) == pytest.approx(math.cos(angle) if j % 2 else math.sin(angle), abs=1e-6)


def test_sincos3d_spends_a_third_of_the_width_on_each_axis():
    places = table("sincos3d", (4, 5, 6), 24, CPU).view(4, 5, 6, 24)
    for axis in range(3):
        part = places[..., 8 * axis : 8 * axis + 8].movedim(axis, 0)
        assert torch.equal(part, part[:, :1, :1].expand_as(part))
        assert part[:, 0, 0].unique(dim=0).shape[0] == part.shape[0]
    assert float(places[3, 0, 0, 2]) == pytest.approx(math.sin(3 / 10_000 ** (1 / 4)))


def test_any_size_that_the_tubelets_divide_also_after_inference_mode():
    encoder = small()
    with torch.inference_mode():
        encoder(torch.randn(1, 3, 2, 4, 24))
    for size in ((2, 4, 24), (6, 8, 8), (4, 20, 16)):
        encoder(torch.randn(1, 3, *size)).square().sum().backward()
    assert not [k for k in encoder.state_dict() if k.split(".")[0] not in {"patch", "blocks", "norm"}]


def test_stochastic_depth_rises_over_the_blocks_and_rests_in_evaluation():
    encoder, clip = small(drop_path=0.5), torch.randn(8, 3, 2, 8, 8)
    assert not torch.equal(encoder(clip), encoder(clip))
    assert torch.equal(encoder.eval()(clip), encoder(clip))
    deep = VisionTransformer(1, 8, 5, 2, drop_path=0.4)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in deep.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_bf16_weights():
    encoder = small().bfloat16()
    features = encoder(torch.randn(1, 3, 2, 8, 8).bfloat16())
    assert features.dtype == torch.bfloat16


@pytest.mark.parametrize("size", [(3, 8, 8), (2, 6, 8), (2, 8, 12), (0, 8, 8)])
def test_clip_that_the_tubelets_do_not_divide_is_refused(size):
    clip = torch.zeros(1, 3, *size)
    for call in (small(), lambda clip: small().visible(clip, torch.zeros(1, 1, dtype=torch.int64))):
        with pytest.raises(UserError, match=r"tubelets of \[2, 4, 8\] do not divide a clip of \[.*change data\.frames"):
            call(clip)


def test_heads_must_divide_the_width():
    with pytest.raises(UserError, match=r"encoder\.heads: 5 do not divide a width of 24"):
        VisionTransformer(3, 24, 2, 5)
