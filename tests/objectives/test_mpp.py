"""Next-frame prediction: the loss against a loop, scales undone, flat frames, published names and weights."""

import math

import pytest
import torch
from torch.nn import functional as F

from physrep.encoders.avit import AViT
from physrep.encoders.base import tokens
from physrep.encoders.conv import ConvEncoder
from physrep.errors import UserError
from physrep.objectives.mpp import Mpp, relative_error


def encoder(channels=3, **options):
    torch.manual_seed(0)
    return AViT(channels, **{"width": 16, "depth": 2, "heads": 2, "stem": [2, 2, 1], "scale": 0.5} | options)


def batch(clip):
    return {"clip": clip, "theta": torch.zeros(len(clip), 2), "trajectory": torch.arange(len(clip))}


@pytest.mark.parametrize(("depth", "tensors"), [(12, 439), (24, 859)])
def test_state_dict_is_the_published_one_under_encoder(depth, tensors):
    with torch.device("meta"):
        model = Mpp(AViT(4, depth=depth))
        alone = AViT(4, depth=depth).state_dict()
    names = [name.removeprefix("encoder.") for name in model.state_dict()]
    assert len(set(names)) == len(names) == tensors
    assert {name for name in names if not name.startswith("debed.")} == alone.keys()
    unused = model.state_dict().keys() - dict(model.named_parameters()).keys()
    assert len(unused) == 5 + 3 * depth
    assert all(name.endswith("bias") for name in unused)


def test_encoder_and_destem_take_one_file(tmp_path):
    state = {n.removeprefix("encoder."): torch.randn_like(t) for n, t in Mpp(encoder()).state_dict().items()}
    torch.save(state, tmp_path / "avit.pt")
    model = Mpp(encoder(weights=str(tmp_path / "avit.pt"), labels=[0, 1, 2]))
    assert all(torch.equal(t, state[n.removeprefix("encoder.")]) for n, t in model.state_dict().items())
    torch.save({n: t for n, t in state.items() if n != "debed.out_bias"}, tmp_path / "cut.pt")
    with pytest.raises(UserError, match=r"cut\.pt lacks out_bias; choose the encoder"):
        Mpp(encoder(weights=str(tmp_path / "cut.pt"), labels=[0, 1, 2]))


def test_loss_equals_the_naive_loop():
    model = Mpp(encoder(), floor=0.01).eval()
    clip = torch.randn(2, 3, 4, 8, 8)
    with torch.no_grad():
        terms = model.losses(batch(clip))
    predicted = model.predict(clip[:, :, :3])
    ratios, still = [], []
    for b in range(2):
        for c in range(3):
            truth = clip[b, c, 3].flatten().tolist()
            size = sum(y * y for y in truth) / 64
            error = sum((p - y) ** 2 for p, y in zip(predicted[b, c].flatten().tolist(), truth, strict=True)) / 64
            copied = sum((p - y) ** 2 for p, y in zip(clip[b, c, 2].flatten().tolist(), truth, strict=True)) / 64
            ratios.append(error / (0.01 + size))
            still.append(copied / (0.01 + size))
    assert float(terms["loss"]) == pytest.approx(sum(ratios) / 6, rel=1e-4)
    assert float(terms["nrmse"]) == pytest.approx(sum(map(math.sqrt, ratios)) / 6, rel=1e-4)
    assert float(terms["baseline"]) == pytest.approx(sum(still) / 6, rel=1e-4)


def test_relative_error_of_known_frames():
    y = torch.ones(1, 2, 4, 4)
    y[:, 1] = 0
    assert relative_error(y, y, 1e-3).tolist() == [[0, 0]]
    assert relative_error(torch.zeros_like(y), y, 1.0).tolist() == [[0.5, 0]]
    assert relative_error(y + 1, y, 0.5)[0].tolist() == pytest.approx([1 / 1.5, 1 / 0.5])


@torch.no_grad()
def test_prediction_is_in_the_clips_own_scale():
    model, clip = Mpp(encoder()).eval(), torch.randn(2, 3, 4, 8, 8)
    a, b = torch.tensor([2.0, 0.1, 30.0])[:, None, None], torch.tensor([5.0, -1.0, 0.0])[:, None, None]
    scaled = model.predict(clip * a[:, None] + b[:, None])
    torch.testing.assert_close(scaled, model.predict(clip) * a + b, atol=1e-4, rtol=1e-4)
    assert torch.allclose(model.encode(clip), model.encode(clip * a[:, None] + b[:, None]), atol=1e-4)


@torch.no_grad()
def test_prediction_decodes_the_last_frame_with_the_clips_labels():
    model, clip = Mpp(encoder(2, labels=[9, 4])).eval(), torch.randn(2, 2, 3, 8, 8)
    mean, std = clip.mean((2, 3, 4)), clip.flatten(2).std(2)
    last = model.encoder.frames(clip)[:, :, -1]
    every = F.conv_transpose2d(model.debed.out_proj(last), model.debed.out_kernel, model.debed.out_bias, stride=2)
    expected = every[:, [9, 4]] * std[..., None, None] + mean[..., None, None]
    torch.testing.assert_close(model.predict(clip), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("axis", [2, 3])
def test_rolling_the_clip_rolls_the_prediction_where_periodic(axis):
    model = Mpp(encoder(periodic=[axis == 2, axis == 3])).eval()
    for layer in model.modules():
        if isinstance(layer, torch.nn.Embedding):
            torch.nn.init.normal_(layer.weight)
    clip = torch.randn(1, 3, 3, 16, 16)
    for other in (2, 3):
        error = model.predict(clip.roll(4, other + 1)) - model.predict(clip).roll(4, other)
        assert (float(error.abs().max()) < 1e-4) == (other == axis)


FLAT = {
    "zero clip": lambda clip: clip.zero_(),
    "constant clip": lambda clip: clip.copy_(torch.tensor([3.3, -0.7, 1e4])[:, None, None, None].expand_as(clip)),
    "constant frame": lambda clip: clip[:, :, 1].fill_(0.1),
    "last frame seen": lambda clip: clip[:, :, -2].copy_(clip[:, :, -2, :1, :1].clone().expand_as(clip[:, :, -2])),
    "every frame": lambda clip: clip.copy_(clip[..., :1, :1].clone().expand_as(clip)),
    "frame to predict": lambda clip: clip[:, :, -1].zero_(),
    "one channel": lambda clip: clip[:, 1].fill_(-2.0),
    "one sample": lambda clip: clip[0].fill_(5.0),
    "constant but for rounding": lambda clip: clip.mul_(1e-7).add_(3.0),
}


@pytest.mark.parametrize("name", FLAT)
@pytest.mark.parametrize("stem", [[4, 2, 2], [2, 2, 1]])
def test_flat_frames_give_finite_losses_and_gradients(name, stem):
    model = Mpp(encoder(stem=stem, depth=4))
    clip = torch.randn(2, 3, 5, 32, 32)
    FLAT[name](clip)
    terms = model.losses(batch(clip))
    terms["loss"].backward()
    assert all(torch.isfinite(v) for v in terms.values())
    norm = torch.nn.utils.get_total_norm([w.grad for w in model.parameters()])
    assert float(norm) < 1e5
    assert torch.isfinite(model.encode(clip[:, :, :4])).all()


@torch.no_grad()
def test_encode_gives_the_last_frames_tokens_and_on_request_the_amplitude():
    clip = torch.randn(2, 3, 4, 8, 12) * 2 + 1
    model, wide = Mpp(encoder()), Mpp(encoder(), amplitude=True)
    seen = model.encode(clip)
    assert torch.equal(seen, tokens(model.encoder.frames(clip)[:, :, -1:]))
    more = wide.encode(clip)
    assert more.shape == (2, 6, 16 + 6)
    assert torch.equal(more[..., :16], seen)
    torch.testing.assert_close(more[1, 4, 16:19], clip[1].mean((1, 2, 3)))
    torch.testing.assert_close(more[1, 5, 19:], clip[1].flatten(1).std(1).log())


def test_drop_path_is_drawn_by_batch_in_training_alone():
    model, clip = Mpp(encoder(drop_path=0.8), seed=3), torch.randn(8, 3, 3, 8, 8)

    def loss(number):
        model._batch = number
        return model.losses(batch(clip))["loss"].item()

    assert loss(0) == loss(0)
    assert loss(0) != loss(1)
    assert torch.equal(model.encode(clip), model.eval().encode(clip))
    assert loss(0) == loss(1)


def test_other_encoders_and_floors_are_refused():
    with pytest.raises(UserError, match="needs an axial vision transformer, not ConvEncoder; set encoder=avit_nano"):
        Mpp(ConvEncoder(4))
    with pytest.raises(UserError, match="objective.floor=0: must be more than 0"):
        Mpp(encoder(), floor=0)
