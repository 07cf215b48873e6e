"""Prediction of the next frame: what is predicted from what, targets and persistence, any encoder."""

import pytest
import torch

from physrep.encoders.conv import ConvEncoder
from physrep.encoders.vit import VisionTransformer
from physrep.errors import UserError
from physrep.objectives.decoder import nmse
from physrep.objectives.next_frame import NextFrame


def conv(channels=3):
    return ConvEncoder(channels, (8, 16), (1, 1), (4, 4, 4), ((4, 4, 4), (2, 2, 2)), ((3, 3, 3), (3, 3)), 0.1)


def vit(channels=3):
    return VisionTransformer(channels, width=24, depth=2, heads=4, patch=[4, 8], tubelet=2)


def make(encoder, **options):
    torch.manual_seed(0)
    return NextFrame(encoder(), 3, 8, **options)


def batch(clip):
    return {"clip": clip, "theta": torch.zeros(len(clip), 2), "trajectory": torch.arange(len(clip))}


@pytest.mark.parametrize("encoder", [conv, vit])
@pytest.mark.parametrize("target", ["frame", "delta"])
def test_loss_is_the_nmse_of_what_all_the_clips_features_say_of_the_frame_after_it(encoder, target):
    objective = make(encoder, target=target, floor=0.05)
    clip = torch.randn(2, 3, 9, 16, 32)
    features = objective.encoder(clip[:, :, :8])
    slots = torch.cat(
        [features[:, d, s][:, None] for d in range(features.shape[1]) for s in range(features.shape[2])], 1
    )
    predicted = objective.decoder(slots[:, :, None])[:, :, 0]
    wanted = clip[:, :, 8] - (clip[:, :, 7] if target == "delta" else 0)
    terms = objective.losses(batch(clip))
    assert predicted.shape == wanted.shape == (2, 3, 16, 32)
    torch.testing.assert_close(terms["loss"], nmse(predicted, wanted, 0.05))
    still = (
        nmse(clip[:, :, 7], clip[:, :, 8], 0.05) if target == "frame" else nmse(torch.zeros(2, 3, 16, 32), wanted, 0.05)
    )
    torch.testing.assert_close(terms["baseline"], still)


def test_persistence_is_right_where_nothing_moves_and_one_where_all_is_change():
    objective = make(conv)
    still = torch.randn(2, 3, 1, 16, 32).expand(-1, -1, 9, -1, -1)
    assert objective.losses(batch(still))["baseline"] == 0
    assert make(conv, target="delta").losses(batch(still))["baseline"] == 0
    moving = make(conv, target="delta", floor=1e-9).losses(batch(torch.randn(2, 3, 9, 16, 32)))
    assert float(moving["baseline"]) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("encoder", [conv, vit])
def test_the_frame_to_come_is_not_seen_and_every_frame_before_is(encoder):
    objective = make(encoder)
    clip = torch.randn(2, 3, 9, 16, 32)
    seen = []
    objective.decoder.register_forward_hook(lambda module, given, made: seen.append(made.detach()))
    objective.losses(batch(clip))
    for frame in range(9):
        other = clip.clone()
        other[:, :, frame] += 1
        objective.losses(batch(other))
    same = [torch.equal(seen[0], prediction) for prediction in seen[1:]]
    assert same == [False] * 8 + [True]


@pytest.mark.parametrize("encoder", [conv, vit])
def test_a_travelling_wave_is_predicted_better_than_by_persistence(encoder):
    objective = make(encoder)
    x, t = torch.arange(32) / 32, torch.arange(9)[:, None, None] / 8
    phase = torch.rand(8, 3, 1, 1, 1)
    clip = torch.sin(2 * torch.pi * (x - 2 * t + phase)).expand(8, 3, 9, 16, 32).contiguous()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for _ in range(60):
        terms = objective.losses(batch(clip))
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
    assert terms["loss"] < 0.5 * terms["baseline"]


def test_a_floor_of_zero_is_refused():
    with pytest.raises(UserError, match=r"objective\.floor=0\.0: must be more than 0"):
        make(conv, floor=0.0)
