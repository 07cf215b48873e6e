"""VideoMAE: the tube mask, the loss and its targets by naive loops, nothing hidden seen, the published sizes."""

import math

import pytest
import torch
from omegaconf import OmegaConf

from physrep.config import build
from physrep.encoders.conv import ConvEncoder
from physrep.encoders.vit import VisionTransformer, pick, table
from physrep.errors import UserError
from physrep.objectives.videomae import VideoMae, fill, patch_normalise, tube_mask, tubes

CELL = (2, 4, 4)


def make(channels=3, positions="sincos3d", **options):
    torch.manual_seed(0)
    encoder = VisionTransformer(channels, width=24, depth=3, heads=4, patch=4, tubelet=2, positions=positions)
    return VideoMae(encoder, channels, **options)


def batch(clip):
    return {"clip": clip, "theta": torch.zeros(len(clip), 2), "trajectory": torch.arange(len(clip))}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(objective, clip):
    """What `losses` draws: visible and hidden tubelets, [B, M] and [B, K]."""
    return [tubes(x, objective.encoder.grid(clip)) for x in places(objective, clip)]


def places(objective, clip):
    return tube_mask(objective.encoder.grid(clip), objective.ratio, len(clip), objective.generator())


def cut(clip, b, n, grid):
    """The tubelet n of sample b, [C, dt, dh, dw], sliced by hand."""
    t, h, w = n // (grid[1] * grid[2]), n // grid[2] % grid[1], n % grid[2]
    return clip[b, :, 2 * t : 2 * t + 2, 4 * h : 4 * h + 4, 4 * w : 4 * w + 4]


def test_the_mask_is_the_published_tube():
    grid = (8, 14, 14)
    keep, hidden = (tubes(x, grid) for x in tube_mask(grid, 0.9, 5, generator()))
    assert keep.shape == (5, 160)
    assert hidden.shape == (5, 1408)
    assert torch.equal(torch.cat([keep, hidden], 1).sort(1).values, torch.arange(1568).expand(5, -1))
    for chosen in (keep, hidden):
        slots = chosen.view(5, 8, -1)
        assert torch.equal(slots - 196 * torch.arange(8)[:, None], slots[:, :1].expand_as(slots))
    assert keep.unique(dim=0).shape[0] == 5
    assert tube_mask((2, 8, 8), 0.9, 1, generator())[1].shape == (1, 57)  # of 57.6


def test_every_place_is_hidden_equally_often():
    _, hidden = tube_mask((1, 4, 5), 0.75, 4000, generator())
    share = hidden.flatten().bincount(minlength=20) / 4000
    assert share.sub(0.75).abs().max() < 5 * math.sqrt(0.75 * 0.25 / 4000)


@pytest.mark.parametrize(("ratio", "hidden"), [(0.9, 3), (0.99, 3), (0.5, 2), (0.1, 1)])
def test_on_a_small_grid_something_is_seen_and_something_hidden(ratio, hidden):
    keep, away = tube_mask((2, 2, 2), ratio, 3, generator())
    assert (keep.shape[1], away.shape[1]) == (4 - hidden, hidden)


@pytest.mark.parametrize("target", ["zscore", "patch"])
def test_loss_is_the_mean_over_hidden_pixels_of_the_naive_targets(target):
    objective = make(target=target, eps=0.03)
    clip = torch.randn(2, 3, 4, 8, 16)
    grid = objective.encoder.grid(clip)
    keep, hidden = drawn(objective, clip)
    predicted = objective.decoder(objective.encoder.visible(clip, keep), keep, hidden, grid)
    total = count = 0
    for b in range(2):
        for k, n in enumerate(hidden[b].tolist()):
            tubelet = cut(clip, b, n, grid)
            for c in range(3):
                wanted = tubelet[c].flatten()
                if target == "patch":
                    mean = wanted.sum() / 32
                    std = ((wanted - mean).square().sum() / 31).sqrt()
                    wanted = (wanted - mean) / (std + 0.03)
                total += (predicted[b, k].view(3, 32)[c] - wanted).square().sum()
                count += 32
    torch.testing.assert_close(objective.losses(batch(clip))["loss"], total / count)


def test_patch_targets_hide_amplitude_and_do_not_blow_up_what_is_flat():
    x = torch.randn(1, 2, 3, *CELL)
    torch.testing.assert_close(patch_normalise(5 * x + 3, 0.0), patch_normalise(x, 0.0), atol=1e-5, rtol=1e-5)
    assert patch_normalise(x, 0.0).var((3, 4, 5)).sub(1).abs().max() < 1e-5
    assert patch_normalise(1e-6 * x, 1e-2).abs().max() < 1e-3
    assert patch_normalise(torch.ones(1, 1, 1, *CELL), 1e-2).eq(0).all()


@pytest.mark.parametrize("positions", ["sincos3d", "sinusoid"])
def test_the_decoder_is_blocks_over_visible_and_mask_tokens_with_their_places(positions):
    objective = make(positions=positions)
    decoder, clip = objective.decoder, torch.randn(2, 3, 4, 8, 16)
    keep, hidden = drawn(objective, clip)
    seen = objective.encoder.visible(clip, keep)
    at = table(positions, (2, 2, 4), 12, torch.device("cpu"))
    rows = [[decoder.bridge(seen[b, i]) + at[n] for i, n in enumerate(keep[b])] for b in range(2)]
    rows = [row + [decoder.mask + at[n] for n in hidden[b]] for b, row in enumerate(rows)]
    x = torch.stack([torch.stack(row) for row in rows])
    for block in decoder.blocks:
        x = block(x)
    expected = decoder.head(decoder.norm(x))[:, -hidden.shape[1] :]
    torch.testing.assert_close(decoder(seen, keep, hidden, (2, 2, 4)), expected, atol=1e-5, rtol=1e-5)


def test_nothing_hidden_is_seen():
    objective = make()
    clip = torch.randn(2, 3, 4, 8, 16)
    grid = objective.encoder.grid(clip)
    keep, hidden = drawn(objective, clip)
    spoilt = clip.clone()
    for b in range(2):
        for n in hidden[b].tolist():
            cut(spoilt, b, n, grid).normal_(10.0, 5.0)
    seen, other = (objective.encoder.visible(x, keep) for x in (clip, spoilt))
    assert torch.equal(seen, other)
    assert torch.equal(pick(clip, CELL, keep), pick(spoilt, CELL, keep))
    assert torch.equal(*(objective.decoder(x, keep, hidden, grid) for x in (seen, other)))
    visible, _ = places(objective, clip)
    assert torch.equal(fill(clip, CELL[1:], visible), fill(spoilt, CELL[1:], visible))
    assert objective.losses(batch(spoilt))["loss"] > 10 * objective.losses(batch(clip))["loss"]
    clip.requires_grad_()
    objective.decoder(objective.encoder.visible(clip, keep), keep, hidden, grid).square().sum().backward()
    assert pick(clip.grad, CELL, hidden).eq(0).all()
    assert pick(clip.grad, CELL, keep).ne(0).any()


def test_the_loss_reaches_the_encoder_through_visible_tubelets_alone():
    objective = make()
    clip = torch.randn(2, 3, 4, 8, 16)
    objective.losses(batch(clip))["loss"].backward()
    assert all(w.grad.abs().max() > 0 for w in objective.parameters())


def test_fill_takes_the_nearest_cell_of_the_nearest_visible_patch():
    clip = torch.randn(2, 3, 2, 8, 20)
    keep = torch.tensor([[1, 6], [4, 13]])  # without ties
    filled = fill(clip, (2, 5), keep)
    for b in range(2):
        corners = [(2 * (n // 4), 5 * (n % 4)) for n in keep[b].tolist()]
        for y in range(8):
            for x in range(20):
                corner = 2 * (y // 2), 5 * (x // 5)
                top, left = min(corners, key=lambda c, corner=corner: math.dist(c, corner))
                near = min(range(top, top + 2), key=lambda r, y=y: abs(r - y))
                side = min(range(left, left + 5), key=lambda c, x=x: abs(c - x))
                assert torch.equal(filled[b, :, :, y, x], clip[b, :, :, near, side])


@pytest.mark.parametrize("target", ["zscore", "patch"])
def test_baseline_is_the_better_of_nearest_and_mean(target):
    objective = make(target=target).eval()
    smooth = torch.linspace(-1, 1, 16).expand(2, 3, 4, 8, 16) + torch.arange(3.0).view(3, 1, 1, 1)
    noise = torch.randn(2, 3, 4, 8, 16)
    for clip in (smooth, noise):
        keep, hidden = drawn(objective, clip)
        truth = pick(clip, CELL, hidden)
        seen = pick(clip, CELL, keep)
        flat = torch.stack([seen[b, :, c].mean() for b in range(2) for c in range(3)]).view(2, 1, 3, 1, 1, 1)
        guesses = [flat.expand_as(truth), pick(fill(clip, CELL[1:], places(objective, clip)[0]), CELL, hidden)]
        if target == "patch":
            truth, guesses = patch_normalise(truth, 1e-2), [patch_normalise(g, 1e-2) for g in guesses]
        errors = [(g - truth).square().mean() for g in guesses]
        torch.testing.assert_close(objective.losses(batch(clip))["baseline"], min(errors))
    constant = objective.losses(batch(torch.full((2, 3, 4, 8, 16), 0.7)))
    assert constant["baseline"] < 1e-10
    assert objective.train().losses(batch(clip)).keys() == {"loss"}


def test_smooth_fields_are_learnt_to_below_the_baseline():
    objective = make(channels=1, ratio=0.5)
    phase = torch.rand(16, 1, 1, 1, 1, generator=generator(1))
    x = torch.arange(16) / 16
    clip = torch.sin(2 * torch.pi * (x + phase)).expand(16, 1, 4, 8, 16).contiguous() * 2**0.5
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for objective._batch in range(180):
        terms = objective.losses(batch(clip))
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
    objective.eval()
    found = []
    for objective._batch in range(8):
        terms = objective.losses(batch(clip))
        found.append([terms["loss"].item(), terms["baseline"].item()])
    loss, baseline = (sum(each) for each in zip(*found, strict=True))
    assert loss < 0.35 * baseline


def test_draws_are_a_function_of_seed_epoch_and_batch():
    objective = make()
    clip = torch.randn(2, 3, 4, 8, 16)

    def loss(index, seed=0):
        objective._batch, objective.seed = index, seed
        return objective.losses(batch(clip))["loss"].item()

    first = loss(0)
    torch.manual_seed(5)
    torch.rand(3)
    assert loss(0) == first
    assert loss(1) != first
    assert loss(0, seed=1) != first


@pytest.mark.parametrize(("name", "millions", "heads"), [("vit_small", 2.1, 3), ("vit_base", 7.7, 6)])
def test_decoders_are_of_the_published_sizes(name, millions, heads):
    with torch.device("meta"):
        objective = VideoMae(build(OmegaConf.load(f"conf/encoder/{name}.yaml"), channels=3), 3)
    decoder = objective.decoder
    parts = [decoder.blocks, decoder.norm, decoder.head]
    assert len(decoder.blocks) == 4
    assert decoder.head.out_features == 1536
    assert decoder.blocks[0].attn.num_heads == heads
    assert round(sum(w.numel() for part in parts for w in part.parameters()) / 1e6, 1) == millions


def test_probes_see_all_tokens_after_the_final_norm():
    objective = make()
    clip = torch.randn(2, 3, 4, 8, 16)
    encoder = objective.encoder
    seen = objective.encode(clip)
    assert seen.shape == (2, 16, 24)
    torch.testing.assert_close(seen, encoder.attend(encoder.embed(clip)))
    assert seen.mean(2).abs().max() < 1e-5


def test_mistakes_are_said_in_one_line():
    with pytest.raises(UserError, match=r"objective=videomae: .*ConvEncoder is not; set encoder=vit_nano, vit_tiny"):
        VideoMae(ConvEncoder(3), 3)
    for ratio in (0.0, 1.0, 90):
        with pytest.raises(UserError, match=r"objective\.ratio: .*between 0 and 1"):
            make(ratio=ratio)
    with pytest.raises(UserError, match=r"objective\.heads: 5 do not divide objective\.width=12"):
        make(heads=5)
    with pytest.raises(UserError, match=r"objective\.eps=0\.0: must be more than 0"):
        make(eps=0.0)
    with pytest.raises(UserError, match=r"a clip of one patch"):
        make().losses(batch(torch.randn(1, 3, 2, 4, 4)))
