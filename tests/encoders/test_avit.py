"""The axial vision transformer: published names and counts, attention and buckets against loops, symmetries, files."""

import math

import pytest
import torch
from torch.nn import functional as F

from benchmarks.plain import plain
from physrep.encoders.avit import (
    AViT,
    Block,
    Destem,
    InstanceNorm,
    RmsInstanceNorm,
    Spatial,
    Temporal,
    bucket,
    published,
    revin,
)
from physrep.errors import UserError
from physrep.objectives.mpp import Mpp
from physrep.pretrained import load_pretrained

OUTSIDE = {
    *("space_bag.weight", "space_bag.bias", "debed.out_kernel", "debed.out_bias"),
    *(f"embed.in_proj.{i}.weight" for i in (0, 1, 3, 4, 6, 7)),
    *(f"embed.in_proj.{i}.bias" for i in (1, 4, 7)),
    *(f"debed.out_proj.{i}.weight" for i in (0, 1, 3, 4)),
    *(f"debed.out_proj.{i}.bias" for i in (1, 4)),
}


def tiny(channels=3, **options):
    torch.manual_seed(0)
    return AViT(channels, **{"width": 16, "depth": 2, "heads": 2, "stem": [2, 2, 1], "scale": 0.5} | options)


def contents(encoder):
    """What a published file of an encoder holds, with values drawn anew: itself and a de-stem."""
    parts = {**encoder.state_dict(), **{f"debed.{k}": v for k, v in destem(encoder).state_dict().items()}}
    return {name: torch.randn_like(tensor) for name, tensor in parts.items()}


def destem(encoder):
    return Destem(encoder.width, encoder.stem, encoder.states)


@pytest.mark.parametrize(
    ("size", "tensors", "weights"),
    [
        ({}, 439, 7_285_884),
        ({"width": 384, "heads": 6}, 439, 28_979_436),
        ({"width": 768, "heads": 12}, 439, 115_608_012),
        ({"width": 1024, "depth": 24, "heads": 16}, 859, 407_055_628),
    ],
)
def test_names_and_counts_are_the_published_ones(size, tensors, weights):
    with torch.device("meta"):
        state = contents(AViT(4, **size))
    assert len(state) == tensors
    assert sum(t.numel() for t in state.values()) == weights
    blocks = {n for n in state if n.startswith("blocks.")}
    assert state.keys() - blocks == OUTSIDE
    for i in range(size.get("depth", 12)):
        within = [n for n in blocks if n.startswith(f"blocks.{i}.")]
        assert len(within) == 35
        assert {n.split(".")[2] for n in within} == {"temporal", "spatial"}


def naive_bucket(distance):
    """T5's: up to 7 its own, then 8 + floor(8 log(n / 8) / log(4)) in whole numbers, 15 at most; 16 more if ahead."""
    n = abs(distance)
    b = n if n < 8 else min(15, 8 + max(k for k in range(200) if n**8 >= 4**k * 8**8))
    return b + 16 * (distance > 0)


def test_buckets_are_t5s():
    distances = torch.arange(-300, 301)
    assert bucket(distances).tolist() == [naive_bucket(d) for d in distances.tolist()]
    assert bucket(torch.tensor([-1, 1, -127, -128, 127, 10**6])).tolist() == [1, 17, 15, 15, 31, 31]


def naive_bias(table, query, key, n, periodic):
    """The table's row for one pair of places; around a periodic axis the shorter way, backwards at a tie."""
    distance = key - query
    if periodic:
        distance = min((distance - n, distance, distance + n), key=lambda d: (abs(d), d))
    return table[naive_bucket(distance)]


def naive_mix(block, normed, axis, periodic, heads):
    """Attention along `axis` of one sample's normalised maps [T, D, h, w], token by token, before the output norm."""
    t, d, h, w = normed.shape
    size = d // heads
    out = torch.zeros(t, d, h, w)
    weight, bias = block.input_head.weight[:, :, 0, 0], block.input_head.bias
    table = block.rel_pos_bias.relative_attention_bias.weight

    def parts(place, head):
        packed = (weight @ normed[place[0], :, place[1], place[2]] + bias)[3 * size * head : 3 * size * (head + 1)]
        q, k, v = packed[:size], packed[size : 2 * size], packed[2 * size :]
        q = F.layer_norm(q, (size,), block.qnorm.weight, block.qnorm.bias)
        return q, F.layer_norm(k, (size,), block.knorm.weight, block.knorm.bias), v

    for place in [(a, b, c) for a in range(t) for b in range(h) for c in range(w)]:
        row = [(*place[:axis], i, *place[axis + 1 :]) for i in range((t, h, w)[axis])]
        for head in range(heads):
            q = parts(place, head)[0]
            scores = []
            for other in row:
                shift = naive_bias(table, place[axis], other[axis], len(row), periodic)[head]
                scores.append(q @ parts(other, head)[1] / math.sqrt(size) + shift)
            share = torch.stack(scores).softmax(0)
            mixed = sum(s * parts(other, head)[2] for s, other in zip(share, row, strict=True))
            out[place[0], size * head : size * (head + 1), place[1], place[2]] = mixed
    return out


def randomise(module):
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return module


@torch.no_grad()
def test_temporal_attention_equals_the_naive_loop():
    torch.manual_seed(0)
    block, x = randomise(Temporal(8, 2, 1.0)), torch.randn(2, 3, 8, 2, 2)
    keep = torch.tensor([1.0, 0.0])[:, None, None, None, None]

    def norm(maps, layer):
        centred = maps - maps.mean((2, 3), keepdim=True)
        scaled = centred / (centred.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
        return scaled * layer.weight[:, None, None] + layer.bias[:, None, None]

    mixed = norm(naive_mix(block, norm(x[0], block.norm1), 0, False, 2), block.norm2)
    added = torch.einsum("od,tdhw->tohw", block.output_head.weight[:, :, 0, 0], mixed)
    added = (added + block.output_head.bias[:, None, None]) * block.gamma[:, None, None]
    torch.testing.assert_close(block(x, keep)[0], x[0] + added, atol=1e-4, rtol=1e-4)
    assert torch.equal(block(x, keep)[1], x[1])


@torch.no_grad()
@pytest.mark.parametrize("periodic", [(False, False), (True, False), (False, True)])
def test_spatial_attention_and_mlp_equal_the_naive_loop(periodic):
    torch.manual_seed(0)
    block, x = randomise(Spatial(8, 2, periodic, 1.0)), torch.randn(1, 1, 8, 3, 4)

    def norm(maps, layer):
        return maps / maps.std((2, 3), keepdim=True) * layer.weight[:, None, None]

    normed = norm(x[0], block.norm1)
    mixed = (naive_mix(block, normed, 1, periodic[0], 2) + naive_mix(block, normed, 2, periodic[1], 2)) / 2
    added = torch.einsum("od,tdhw->tohw", block.output_head.weight[:, :, 0, 0], norm(mixed, block.norm2))
    y = x[0] + (added + block.output_head.bias[:, None, None]) * block.gamma_att[:, None, None]
    hidden = F.gelu(y.movedim(1, -1) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias)
    grown = (hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias).movedim(-1, 1)
    y = y + norm(grown, block.mlp_norm) * block.gamma_mlp[:, None, None]
    torch.testing.assert_close(block(x, torch.ones(2, 1, 1, 1, 1, 1))[0], y, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_stem_and_destem_equal_plain_steps():
    encoder = tiny(3, labels=[7, 0, 4], stem=[4, 2, 2])
    x = torch.randn(2, 3, 32, 48)
    full = torch.zeros(2, 12, 32, 48)
    full[:, [7, 0, 4]] = x
    y = torch.einsum("ds,nshw->ndhw", encoder.space_bag.weight, full) + encoder.space_bag.bias[:, None, None]
    weight, bias = encoder.space_bag(encoder.labels)
    first = torch.einsum("dc,nchw->ndhw", weight, x) + bias[:, None, None]
    torch.testing.assert_close(first, math.sqrt(12 / 3) * y)
    for i, layer in enumerate(encoder.embed.in_proj):
        y = F.conv2d(y, layer.weight, stride=(4, 2, 2)[i // 3]) if i % 3 == 0 else layer(y)
    joined = encoder.embed(x, *encoder.space_bag(encoder.labels))
    assert joined.shape == (2, 16, 2, 3)
    torch.testing.assert_close(joined, y, atol=1e-4, rtol=1e-4)

    back = destem(encoder)
    every = F.conv_transpose2d(back.out_proj(joined), back.out_kernel, back.out_bias, stride=4)
    assert every.shape == (2, 12, 32, 48)
    torch.testing.assert_close(back(joined, encoder.labels), every[:, [7, 0, 4]])
    assert [layer.stride[0] for layer in back.out_proj[::3]] == [2, 2]


def test_norms_equal_their_formulas_and_pytorchs():
    x = torch.randn(3, 4, 4, 5) + 2
    torch.testing.assert_close(RmsInstanceNorm(4)(x)[1, 0], x[1, 0] / x[1, 0].std())
    norm, plain = InstanceNorm(4), torch.nn.InstanceNorm2d(4, affine=True)
    plain.load_state_dict({name: torch.nn.init.normal_(weight) for name, weight in norm.named_parameters()})
    torch.testing.assert_close(norm(x), plain(x), atol=1e-5, rtol=1e-5)


def test_norms_take_a_map_that_is_flat_but_for_rounding_for_its_mean():
    x = torch.tensor([3.0, -4.0, 0.0, 1e-4])[:, None, None].expand(2, 4, 4, 5).clone()
    x[0] += 1e-6 * torch.randn(4, 4, 5)
    x[1] = 0
    x.requires_grad_()
    scaled, centred = RmsInstanceNorm(4)(x), InstanceNorm(4)(x)
    torch.testing.assert_close(scaled[0, :, 2, 2], torch.tensor([1.2, -1.6, 0, 0]), atol=1e-4, rtol=1e-4)
    assert not scaled.detach().flatten(2).std(2).any()
    assert not centred.any()
    assert not scaled[1].any()
    (scaled.square().sum() + centred.square().sum()).backward()
    assert float(x.grad.abs().max()) < 1


@pytest.mark.parametrize("periodic", [(True, False), (False, True)])
def test_outputs_and_gradients_are_the_plain_ones(periodic):
    model = Mpp(tiny(4, periodic=periodic, width=32, heads=2, drop_path=0.3))
    clip, results = torch.randn(3, 4, 6, 16, 24), []
    for form in (model, plain(model)):
        generator = torch.Generator().manual_seed(0)
        predicted = form.predict(clip, generator)
        predicted.square().mean().backward()
        used = [(n, w.grad) for n, w in form.named_parameters() if w.grad is not None and "knorm.bias" not in n]
        results.append((predicted.detach(), dict(used)))
    (ours, of_ours), (theirs, of_theirs) = results
    assert off(ours, theirs) < 1e-5
    assert of_ours.keys() == of_theirs.keys()
    assert len(of_ours) > 60
    assert max(off(grad, of_theirs[name]) for name, grad in of_ours.items()) < 1e-4


def test_bfloat16_is_no_further_from_float32_than_plain_bfloat16():
    model, clip = Mpp(tiny(4, width=32, heads=2)), torch.randn(3, 4, 6, 16, 24)

    def gradients(form, enabled):
        form.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            predicted = form.predict(clip)
        predicted.float().square().mean().backward()
        return [w.grad for n, w in form.named_parameters() if w.grad is not None and "knorm.bias" not in n]

    truth = gradients(plain(model), enabled=False)
    ours, theirs = (list(map(off, gradients(form, enabled=True), truth)) for form in (model, plain(model)))
    assert 0 < sum(ours) < 1.05 * sum(theirs)


def test_blocks_compile():
    block, x, results = randomise(Block(8, 2, (True, False), 0.5)), torch.randn(2, 3, 8, 4, 4), []
    for form in (block, torch.compile(block, backend="aot_eager", fullgraph=True)):
        block.zero_grad()
        form(x, torch.ones(3, 2, 1, 1, 1, 1)).square().sum().backward()
        results.append([w.grad.clone() for n, w in block.named_parameters() if "knorm.bias" not in n])
    assert max(map(off, *results)) < 1e-5


def off(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


def test_revin_is_undone_by_what_it_returns():
    clip = 5 * torch.randn(2, 3, 4, 6, 5) + torch.tensor([1.0, -20.0, 300.0])[:, None, None, None]
    clip[0, 1] = 7.0  # a channel that never changes
    x, mean, std = revin(clip)
    torch.testing.assert_close(x * std + mean, clip)
    torch.testing.assert_close(x[1, 2].mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(std[1, 2, 0, 0, 0], clip[1, 2].flatten().std())
    assert float(x[0, 1].abs().max()) <= 1


@torch.no_grad()
def test_shapes_frames_and_grids():
    encoder = tiny()
    clip = torch.randn(2, 3, 5, 12, 8)
    maps = encoder.frames(clip)
    assert maps.shape == (2, 16, 5, 3, 2)
    assert torch.equal(encoder(clip), maps[:, :, -1:])
    for frames, height, width in [(1, 8, 8), (3, 4, 20), (20, 12, 4)]:
        features = encoder(torch.randn(1, 3, frames, height, width))
        assert features.shape == (1, 16, 1, height // 4, width // 4)
        assert torch.isfinite(features).all()
    for grid in [(4, 4), (8, 6), (10, 8)]:
        with pytest.raises(UserError, match=r"a grid of \[\d+, \d+\] \(H, W\) is not two patches or more of 4 x 4"):
            encoder(torch.randn(1, 3, 2, *grid))


@torch.no_grad()
@pytest.mark.parametrize("periodic", [(True, False), (False, True), (True, True), (False, False)])
def test_rolling_whole_patches_rolls_the_features_where_periodic(periodic):
    encoder, clip = tiny(periodic=periodic), torch.randn(1, 3, 3, 20, 16)
    for module in encoder.modules():
        if isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight)
    maps = encoder.frames(clip)
    for axis, wraps in zip((3, 4), periodic, strict=True):
        rolled = encoder.frames(clip.roll(8, axis))
        error = float((rolled - maps.roll(2, axis)).abs().max())
        assert (error < 1e-4) == wraps, error
        assert float((rolled - maps).abs().max()) > 0.1


@torch.no_grad()
def test_channels_permuted_with_their_labels_give_equal_features():
    order, labels = [2, 0, 3, 1], [6, 1, 9, 4]
    clip = torch.randn(2, 4, 3, 8, 8)
    one, other = tiny(4, labels=labels), tiny(4, labels=[labels[i] for i in order])
    torch.testing.assert_close(other(clip[:, order]), one(clip), atol=1e-5, rtol=1e-5)
    assert float((other(clip) - one(clip)).abs().max()) > 0.01


def test_labels_that_do_not_fit_are_refused_and_slots_grow_with_channels():
    assert tiny(14).states == 14
    assert tiny(2, labels=[12, 3], states=13).labels.tolist() == [12, 3]
    for labels in ([0, 1], [0, 1, 1], [0, 1, 12], [-1, 0, 1], []):
        with pytest.raises(UserError, match=r"encoder\.labels: .* are not 3 different slots from 0 to 11"):
            tiny(3, labels=labels)
    with pytest.raises(UserError, match="encoder.width: 18 must be a multiple of 4"):
        tiny(width=18)


@torch.no_grad()
def test_drop_path_is_a_function_of_its_generator():
    encoder, x = tiny(depth=3, drop_path=0.6), torch.randn(8, 3, 2, 8, 8)

    def maps(seed):
        return encoder.stack(x, torch.Generator().manual_seed(seed))

    seen = []
    for block in encoder.blocks:
        block.register_forward_pre_hook(lambda _, given: seen.append(given[1].unique().tolist()))
    maps(0)
    assert seen == [[1], [0, pytest.approx(1 / 0.7)], [0, pytest.approx(1 / 0.4)]]
    assert torch.equal(maps(1), maps(1))
    assert not torch.equal(maps(1), maps(2))
    assert torch.equal(encoder.stack(x), encoder.stack(x))
    encoder.rates = [0.0, 0.0, 0.0]
    assert torch.equal(maps(1), encoder.stack(x))


LAYOUTS = {
    "bare": lambda state: state,
    "training": lambda state: {"model_state": {f"module.{n}": x for n, x in state.items()}, "epoch": 3},
    "run": lambda state: {
        "state_dict": {n if n.startswith("debed.") else f"encoder.{n}": x for n, x in state.items()},
        "global_step": 7,
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_of_every_layout_load_strictly(tmp_path, layout):
    state, path = contents(tiny()), str(tmp_path / "avit.tar")
    torch.save(LAYOUTS[layout](state), path)
    encoder = tiny(weights=path, labels=[0, 1, 2])
    assert all(torch.equal(tensor, state[name]) for name, tensor in encoder.state_dict().items())
    back = destem(encoder)
    load_pretrained(back, path, published(back, "debed."))
    assert all(torch.equal(tensor, state[f"debed.{name}"]) for name, tensor in back.state_dict().items())


def test_slots_that_the_file_does_not_have_stay_as_they_are(tmp_path):
    state, path = contents(tiny()), str(tmp_path / "avit.pt")
    torch.save(state, path)
    fresh, encoder = tiny(3, states=15), tiny(3, states=15, labels=[0, 1, 2], weights=path)
    assert torch.equal(encoder.space_bag.weight[:, :12], state["space_bag.weight"])
    assert torch.equal(encoder.space_bag.weight[:, 12:], fresh.space_bag.weight[:, 12:])
    back = destem(encoder)
    kernel, bias = (x.detach().clone() for x in (back.out_kernel, back.out_bias))
    load_pretrained(back, path, published(back, "debed."))
    assert torch.equal(back.out_kernel, torch.cat([state["debed.out_kernel"], kernel[:, 12:]], 1))
    assert torch.equal(back.out_bias, torch.cat([state["debed.out_bias"], bias[12:]]))


def test_files_of_another_model_are_refused_in_one_line(tmp_path):
    def refused(held, match, **options):
        torch.save(held, tmp_path / "odd.pt")
        with pytest.raises(UserError, match=match):
            tiny(weights=str(tmp_path / "odd.pt"), **{"labels": [0, 1, 2]} | options)

    state = contents(tiny())
    refused({n: x for n, x in state.items() if "gamma" not in n}, r"lacks blocks\.0\.spatial\.gamma_att and 5 more")
    refused(state | {"head.weight": torch.ones(2)}, r"has unknown head\.weight; choose the encoder")
    refused(state, r"has unknown blocks\.1\.spatial\.gamma_att and 34 more", depth=1)
    refused(state, r"lacks blocks\.2\.spatial\.gamma_att and 34 more", depth=3)
    refused(state, r"whose slots are fields by name; .* encoder\.labels=\[0,1,2\]", labels=None)
    refused(state, r"space_bag\.weight is \[4, 12\] in the file and \[8, 12\] here", width=32)
    refused(state, r"whose slots are fields by name; .* encoder\.labels=\[0,1,2\]", labels=None)
    refused(state, r"space_bag\.weight is \[4, 12\] in the file and \[4, 5\] here", states=5)
