"""Masked latent prediction: the published masks, the loss by naive loops, nothing hidden seen, the teacher."""

import math

import pytest
import torch
from omegaconf import OmegaConf
from torch.nn import functional as F

from physrep.config import build, compose
from physrep.encoders.base import tokens
from physrep.encoders.conv import ConvEncoder
from physrep.encoders.vit import VisionTransformer
from physrep.errors import UserError
from physrep.objectives import masked_latent
from physrep.objectives.masked_latent import MaskedLatent, draw_blocks, split
from physrep.optim import adamw

PUBLISHED = ((8, 0.15), (2, 0.7))


def make(channels=3, layers=3, drop_path=0.0, **options):
    torch.manual_seed(0)
    encoder = VisionTransformer(channels, width=24, depth=layers, heads=4, patch=4, tubelet=2, drop_path=drop_path)
    return MaskedLatent(encoder, **options)


def batch(clip):
    return {"clip": clip, "theta": torch.zeros(len(clip), 2), "trajectory": torch.arange(len(clip))}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(objective, clip):
    """What `losses` draws: context and targets for each mask."""
    grid, g = objective.encoder.grid(clip), objective.generator()
    return [split(draw_blocks(grid, *mask, len(clip), g), grid[0], g) for mask in objective.masks]


def naive_norm(v):
    return (v - v.sum() / len(v)) / (v.var(correction=0) + 1e-5).sqrt()


def moved(objective):
    """The objective with an encoder and a teacher whose weights differ from one another and from the first."""
    with torch.no_grad():
        for seed, part in ((3, objective.encoder), (4, objective.teacher)):
            for w in part.parameters():
                w.add_(0.1 * torch.randn(w.shape, generator=generator(seed)))
    return objective


@pytest.mark.parametrize(
    ("mask", "context", "targets"),
    [(PUBLISHED[0], (0.26, 0.27), (0.51, 0.53)), (PUBLISHED[1], (0.09, 0.10), (0.70, 0.72))],
)
def test_shares_are_the_published_ones(mask, context, targets):
    """Of 8 x 14 x 14 tokens, in batches of 8."""
    g, found = generator(), []
    for _ in range(200):
        found.append([x.shape[1] / 1568 for x in split(draw_blocks((8, 14, 14), *mask, 8, g), 8, g)])
    for share, (low, high) in zip(torch.tensor(found).mean(0), (context, targets), strict=True):
        assert low - 0.005 < share < high + 0.005


def test_a_block_is_a_rectangle_of_the_batch_s_size_anywhere():
    found, corners, g = set(), set(), generator()
    for _ in range(200):
        blocks = draw_blocks((2, 14, 14), 1, 0.15, 4, g)
        sizes = set()
        for block in blocks:
            y, x = (v.unique() for v in block.nonzero(as_tuple=True))
            assert block.sum() == len(y) * len(x), "covered cells are all of some rows and columns"
            assert len(y) == y[-1] - y[0] + 1
            assert len(x) == x[-1] - x[0] + 1
            sizes.add((len(y), len(x)))
            corners.add((int(y[0]), int(x[0])))
        assert len(sizes) == 1
        found |= sizes
    aspects = [0.75 + 0.75 * i / 1000 for i in range(1001)]
    assert found == {(round((29 * a) ** 0.5), round((29 / a) ** 0.5)) for a in aspects}, "15 % of 196 are 29"
    assert len(corners) > 60
    assert {y for y, _ in corners} == set(range(10)), "a block of 5 rows fits 10 times"
    assert {x for _, x in corners} == set(range(11)), "one of 4 columns 11 times"


@pytest.mark.parametrize(("number", "share"), [*PUBLISHED, (5, 0.4)])
def test_the_union_is_a_naive_loop_s(number, share):
    h, w = 6, 9
    for seed in range(20):
        g = generator(seed)
        aspect = 0.75 + 0.75 * torch.rand((), generator=g).item()
        height = min(round(math.sqrt(int(share * 54) * aspect)), h)
        width = min(round(math.sqrt(int(share * 54) / aspect)), w)
        top = torch.randint(h - height + 1, (3, number), generator=g)
        left = torch.randint(w - width + 1, (3, number), generator=g)
        blocks = draw_blocks((4, h, w), number, share, 3, generator(seed))
        for b in range(3):
            covered = torch.zeros(h, w, dtype=torch.bool)
            for y, x in zip(top[b].tolist(), left[b].tolist(), strict=True):
                more = covered.clone()
                more[y : y + height, x : x + width] = True
                if more.all():
                    break
                covered = more
            assert torch.equal(blocks[b], covered)


@pytest.mark.parametrize("mask", PUBLISHED)
def test_context_and_targets_are_apart_valid_and_of_their_side(mask):
    g = generator()
    blocks = draw_blocks((4, 6, 9), *mask, 5, g)
    context, targets = split(blocks, 4, g)
    covered = blocks.flatten(1).repeat(1, 4)
    for b in range(5):
        for index, inside in ((context[b], False), (targets[b], True)):
            assert (index.diff() > 0).all()
            assert index[0] >= 0
            assert index[-1] < 216
            assert (covered[b, index] == inside).all()
    free = [int((~x).sum()) for x in covered]
    assert context.shape == (5, min(free))
    assert targets.shape == (5, 216 - max(free))


def test_what_is_cut_prefers_no_time_and_no_place():
    blocks = torch.zeros(2, 3, 4, dtype=torch.bool)
    blocks[0, :, :2], blocks[1, :1] = True, True  # 6 and 4 of 12 places
    g, counts = generator(), torch.zeros(2, 2, 60)
    for _ in range(1500):
        for kind, index in enumerate(split(blocks, 5, g)):
            assert index.shape == (2, (30, 20)[kind])
            counts[kind].scatter_add_(1, index, torch.ones(index.shape))
    expected = torch.stack([(~blocks).flatten(1) * torch.tensor([[1.0], [30 / 40]]),
                            blocks.flatten(1) * torch.tensor([[20 / 30], [1.0]])]).repeat(1, 1, 5)  # fmt: skip
    assert (counts / 1500 - expected).abs().max() < 5 * math.sqrt(0.25 / 1500)


@pytest.mark.parametrize("mask", [*PUBLISHED, (1, 0.99), (40, 0.5)])
@pytest.mark.parametrize("grid", [(2, 2, 4), (1, 1, 2), (3, 2, 1), (2, 2, 2), (2, 3, 3), (4, 16, 1), (2, 4, 8)])
def test_on_a_small_grid_something_is_seen_and_something_hidden(grid, mask):
    for seed in range(20):
        context, targets = split(draw_blocks(grid, *mask, 6, generator(seed)), grid[0], generator(seed))
        assert context.shape[1] > 0
        assert targets.shape[1] > 0
        both = torch.cat([context, targets], 1)
        assert all(len(row.unique()) == len(row) for row in both)


def test_losses_are_finite_on_frames_of_two_by_four_tokens():
    terms = make(vicreg=0.01).losses(batch(torch.randn(2, 3, 4, 8, 16)))
    assert all(torch.isfinite(value) for value in terms.values())


def test_one_patch_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"a clip of one patch.*encoder\.patch$"):
        make().losses(batch(torch.randn(1, 3, 4, 4, 4)))


def test_loss_is_the_mean_over_masks_targets_and_dimensions():
    objective = moved(make())
    clip = torch.randn(2, 3, 4, 16, 16)
    grid = objective.encoder.grid(clip)
    whole = tokens(objective.teacher.module(clip))
    masks, baseline = [], []
    for context, hidden in drawn(objective, clip):
        seen = objective.encoder.attend(torch.stack([objective.encoder.embed(clip)[b, context[b]] for b in range(2)]))
        predicted = objective.predictor(seen, context, hidden, grid)
        total = known = count = 0
        for b in range(2):
            for k, n in enumerate(hidden[b].tolist()):
                wanted, other = (naive_norm(v) for v in (whole[b, n], whole[1 - b, n]))
                total += (predicted[b, k] - wanted).abs().sum()
                known += (wanted - (wanted + other) / 2).abs().sum()
                count += 24
        masks.append(total / count)
        baseline.append(known / count)
    terms = objective.losses(batch(clip))
    torch.testing.assert_close(terms["loss"], sum(masks) / 2)
    torch.testing.assert_close(terms["baseline"], sum(baseline) / 2)
    assert torch.equal(terms["loss"], terms["l1"])
    assert masks[0] != masks[1]


def test_a_larger_batch_is_seen_in_eights():
    objective, clip = moved(make()), torch.randn(20, 3, 4, 32, 32)
    grid, g = objective.encoder.grid(clip), objective.generator()
    whole = F.layer_norm(tokens(objective.teacher.module(clip)), (24,))
    masks, seen = [], []
    for mask in objective.masks:
        blocks, errors = draw_blocks(grid, *mask, 20, g), []
        for part in (slice(0, 8), slice(8, 16), slice(16, 20)):
            context, hidden = split(blocks[part], grid[0], g)
            assert context.shape[1] == (~blocks[part]).sum((1, 2)).min() * grid[0]
            predicted = objective.predictor(objective.encoder.visible(clip[part], context), context, hidden, grid)
            errors += [(predicted[b] - whole[part][b, hidden[b]]).abs().mean() for b in range(len(context))]
            seen.append(context.shape[1])
        masks.append(sum(errors) / 20)
    assert len(set(seen)) > 2
    torch.testing.assert_close(objective.losses(batch(clip))["loss"], sum(masks) / 2)


def test_vicreg_is_of_the_means_of_what_the_encoder_sees():
    objective = moved(make(vicreg=0.02))
    clip = torch.randn(2, 3, 4, 16, 16)
    total = 0
    for context, _ in drawn(objective, clip):
        rows = torch.stack([seen.mean(0) for seen in objective.encoder.visible(clip, context)])
        std = torch.relu(1 - (rows.var(0, correction=0) + 1e-4).sqrt()).mean()
        cov = (torch.cov(rows.T).square().sum() - torch.cov(rows.T).diagonal().square().sum()) / 24
        assert std > 0.05
        total += (25 * std + cov) / 2
    terms = objective.losses(batch(clip))
    torch.testing.assert_close(terms["loss"], terms["l1"] + 0.02 * total)
    plain = moved(make()).losses(batch(clip))
    assert torch.equal(plain["loss"], terms["l1"])
    assert plain.keys() == {"loss", "l1", "baseline"}


def test_nothing_hidden_is_seen():
    objective = moved(make())
    clip = torch.randn(2, 3, 4, 16, 16)
    grid = objective.encoder.grid(clip)
    for context, hidden in drawn(objective, clip):
        seen = torch.zeros(2, 2, 4, 4, dtype=torch.bool)
        for b in range(2):
            seen[b].view(-1)[context[b]] = True
        pixels = seen[:, None].repeat_interleave(2, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
        spoilt = torch.where(pixels, clip, 10 + 5 * torch.randn(clip.shape))
        first, second = (objective.encoder.visible(x, context) for x in (clip, spoilt))
        assert torch.equal(first, second)
        assert torch.equal(*(objective.predictor(x, context, hidden, grid) for x in (first, second)))
        assert not torch.allclose(objective.encode(clip), objective.encode(spoilt))
        before = first.detach()
        changed = objective.encoder.visible(torch.where(pixels, clip + 1, clip), context)
        assert (changed - before).abs().amax(2).min() > 0


def test_gradients_reach_encoder_and_predictor_and_no_teacher():
    objective = moved(make(vicreg=0.01))
    objective.losses(batch(torch.randn(2, 3, 4, 16, 16)))["loss"].backward()
    for name, w in objective.named_parameters():
        if name.startswith("teacher."):
            assert not w.requires_grad
            assert w.grad is None
        else:
            assert w.grad.abs().max() > 0, name


def test_the_optimiser_has_encoder_and_predictor_and_no_more():
    objective = make()
    held = {id(w) for group in adamw(objective, **objective.plan).param_groups for w in group["params"]}
    assert held == {id(w) for part in (objective.encoder, objective.predictor) for w in part.parameters()}
    assert len(list(objective.teacher.parameters())) == len(list(objective.encoder.parameters()))


def test_the_teacher_drops_nothing_and_is_what_probes_get():
    objective = moved(make(drop_path=0.9).train())
    clip = torch.randn(2, 3, 4, 16, 16)
    assert objective.encoder.training
    assert not any(m.training for m in objective.teacher.modules())
    assert not torch.equal(objective.encoder(clip), objective.encoder(clip))
    plain = make()
    plain.encoder.load_state_dict(objective.teacher.module.state_dict())
    assert torch.equal(objective.encode(clip), tokens(plain.encoder(clip)))
    assert objective.encode(clip).shape == (2, 32, 24)
    begun = make()
    assert torch.equal(begun.encode(clip), tokens(begun.encoder(clip))), "it begins as the encoder"
    assert begun.encode(clip).mean(2).abs().max() < 1e-5, "after the final norm"


def test_draws_are_a_function_of_seed_epoch_and_batch(monkeypatch):
    objective = moved(make())
    clip = torch.randn(2, 3, 4, 16, 16)

    def draw(index, seed=0, epoch=0):
        objective._batch, objective.seed = index, seed
        monkeypatch.setattr(MaskedLatent, "current_epoch", epoch)
        return objective.losses(batch(clip))["loss"].item()

    first = draw(0)
    torch.manual_seed(5)
    torch.rand(3)
    assert draw(0) == first
    assert first not in (draw(1), draw(0, seed=1), draw(0, epoch=1))


def test_waves_are_learnt_to_below_the_mean_target():
    """Waves of any phase, of which every part tells the rest; the teacher moves along and does not collapse."""
    objective = make(channels=1, layers=1, ema=0.9)
    phase = torch.rand(16, 1, 1, 1, 1, generator=generator(1))
    clip = torch.sin(2 * torch.pi * (torch.arange(16) / 16 + phase)).expand(16, 1, 4, 8, 16).contiguous() * 2**0.5
    optimizer = adamw(objective, 1e-2, 0.0, (0.9, 0.95))
    history = []
    for index in range(100):
        objective._batch = index
        terms = objective.losses(batch(clip))
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        objective.teacher.update_parameters(objective.encoder)
        history.append([terms["loss"].item(), terms["baseline"].item()])
    loss, baseline = torch.tensor(history[-20:]).mean(0)
    assert loss < 0.85 * baseline
    assert baseline > 0.8 * history[0][1]


@pytest.mark.parametrize(("name", "width", "depth", "heads"), [("vit_small", 192, 6, 3), ("vit_nano", 48, 2, 2)])
def test_the_predictor_is_half_the_encoder(name, width, depth, heads, monkeypatch):
    monkeypatch.setattr(masked_latent, "Teacher", lambda *_: None)
    with torch.device("meta"):
        encoder = build(OmegaConf.load(f"conf/encoder/{name}.yaml"), channels=3)
        predictor = MaskedLatent(encoder).predictor
    assert predictor.mask.shape == (width,)
    assert predictor.head.out_features == encoder.width
    assert len(predictor.blocks) == depth
    assert predictor.blocks[0].attn.num_heads == heads
    if name == "vit_small":
        assert round(sum(w.numel() for w in predictor.parameters()) / 1e6, 1) == 2.8


def test_yaml_files_differ_in_ema_and_vicreg():
    plain, regular = (compose([f"objective={n}"]).objective for n in ("masked_latent", "masked_latent_vicreg"))
    assert regular == plain | {"vicreg": 0.01}
    assert 1 / (1 - plain.ema) < 500 / 4, "the teacher's memory against the steps of trainer=cpu"


def test_mistakes_are_said_in_one_line():
    with pytest.raises(UserError, match=r"objective=masked_latent: .*ConvEncoder is not; set encoder=vit_nano"):
        MaskedLatent(ConvEncoder(3))
    for masks in ([], [[0, 0.15]], [[8, 15]], [[8, 0.15], [2, 0]]):
        with pytest.raises(UserError, match=r"objective\.masks: .*choose such as \[\[8, 0\.15\], \[2, 0\.7\]\]"):
            make(masks=masks)
    with pytest.raises(UserError, match=r"objective\.heads: 5 do not divide objective\.width=12"):
        make(heads=5)
    node = {"_target_": "physrep.objectives.masked_latent.MaskedLatent", "ema": 1.5}
    with pytest.raises(UserError, match=r"Invalid decay value 1\.5"):
        build(node, encoder=make().encoder, seed=0)
