"""JEPA's options against naive recomputation: teacher, stopped gradient, projector, SIGReg."""

import pytest
import torch

from physrep.config import build
from physrep.encoders.base import tokens
from physrep.encoders.conv import ConvEncoder
from physrep.errors import UserError
from physrep.losses import sigreg, vicreg
from physrep.objectives.jepa import Jepa
from physrep.objectives.views import draw_slices


def jepa(channels=2, **options):
    torch.manual_seed(0)
    kernels = ((3, 3, 3), (3, 3))
    encoder = ConvEncoder(channels, (4, 8), (1, 1), (4, 4, 4), ((4, 4, 4), (2, 2, 2)), kernels, 0.1)
    return Jepa(encoder, **options)


@pytest.fixture
def batch():
    clip = torch.randn(3, 2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    return {"clip": clip, "theta": torch.zeros(3, 2), "trajectory": torch.arange(3)}


def test_defaults_are_the_published_weights_and_no_more():
    names = {name.split(".")[0] for name in jepa().state_dict()}
    assert names == {"encoder", "predictor"}
    plain, whole = jepa().state_dict(), jepa(ema=0.9, projection=6).state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in plain.items()), "options draw after the rest"


def test_projector_stands_between_rows_and_loss(batch):
    objective = jepa(projection=6, chunks=1)
    f, g, project = objective.encoder, objective.predictor, objective.projector
    x = project(tokens(g(f(batch["clip"][:, :, :8]))).flatten(0, 1))
    y = project(tokens(f(batch["clip"][:, :, 8:])).flatten(0, 1))
    assert x.shape == (12, 6)
    terms = vicreg(x, y)
    expected = 2 * terms["sim"] + 40 * terms["std"] + 2 * terms["cov"]
    torch.testing.assert_close(objective.losses(batch)["loss"], expected)
    assert objective.encode(batch["clip"][:, :, :8]).shape == (3, 4, 8), "probes do not see it"


def test_sigreg_stands_for_the_statistics(batch):
    objective = jepa(loss="sigreg", chunks=2)
    f, g = objective.encoder, objective.predictor
    x, y = tokens(g(f(batch["clip"][:, :, :8]))).flatten(0, 1), tokens(f(batch["clip"][:, :, 8:])).flatten(0, 1)
    order, slices = torch.randperm(12, generator=objective.generator()), draw_slices(objective, 8, 256)
    total = 0.0
    for rows in (order[:6], order[6:]):
        statistic = (sigreg(x[rows], slices) + sigreg(y[rows], slices)) / 2
        total += (2 * (x[rows] - y[rows]).square().mean() + 0.2 * statistic) / 2
    torch.testing.assert_close(objective.losses(batch)["loss"], total)


@pytest.mark.parametrize("options", [{"stop_gradient": True}, {"ema": 0.9}, {"ema": 0.9, "projection": 6}])
def test_no_gradient_through_the_later_clip(options):
    objective = jepa(**options)
    now, later = (torch.randn(3, 2, 8, 16, 16, requires_grad=True) for _ in range(2))
    batch = {"clip": torch.cat([now, later], 2), "theta": torch.zeros(3, 2), "trajectory": torch.arange(3)}
    objective.losses(batch)["loss"].backward()
    assert now.grad.abs().max() > 0
    if "ema" in options:
        assert not any(w.requires_grad or w.grad is not None for w in objective.teacher.parameters())
    else:
        assert not later.grad.any()
    assert all(w.grad.abs().max() > 0 for w in objective.parameters() if w.requires_grad)


def test_gather_in_one_process_changes_nothing(batch):
    assert torch.equal(jepa(gather=True).losses(batch)["loss"], jepa().losses(batch)["loss"])


def test_the_later_clip_is_embedded_by_the_teacher(batch):
    objective = jepa(ema=0.9, chunks=1)
    start = objective.losses(batch)["loss"]
    assert torch.equal(start, jepa(chunks=1).losses(batch)["loss"]), "it begins as the encoder"
    with torch.no_grad():
        for w in objective.encoder.parameters():
            w.add_(0.1 * torch.randn_like(w))
    f, g, teacher = objective.encoder, objective.predictor, next(objective.teacher.module.children())
    x = tokens(g(f(batch["clip"][:, :, :8]))).flatten(0, 1)
    y = tokens(teacher(batch["clip"][:, :, 8:])).flatten(0, 1)
    terms = vicreg(x, y)
    expected = 2 * terms["sim"] + 40 * terms["std"] + 2 * terms["cov"]
    torch.testing.assert_close(objective.losses(batch)["loss"], expected)
    clip = batch["clip"][:, :, :8]
    assert torch.equal(objective.encode(clip), tokens(teacher(clip))), "and is what probes get"
    assert not torch.allclose(objective.encode(clip), tokens(f(clip)))


def test_ema_outside_its_range_is_one_line():
    node = {"_target_": "physrep.objectives.jepa.Jepa", "ema": 1.5}
    with pytest.raises(UserError, match=r"Invalid decay value 1\.5"):
        build(node, encoder=jepa().encoder, seed=0)
