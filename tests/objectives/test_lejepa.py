"""Temporal LeJEPA: its formula, gradients through both clips, collapse."""

import pytest
import torch

from physrep.encoders.base import tokens
from physrep.encoders.conv import ConvEncoder
from physrep.losses import sigreg
from physrep.objectives.lejepa import LeJepa
from physrep.objectives.views import draw_slices, pool


def lejepa(**options):
    torch.manual_seed(0)
    kernels = ((3, 3, 3), (3, 3))
    encoder = ConvEncoder(2, (4, 8), (1, 1), (4, 4, 4), ((4, 4, 4), (2, 2, 2)), kernels, 0.1)
    return LeJepa(encoder, **{"projection": 6, "slices": 16} | options)


def batch_of(clip):
    return {"clip": clip, "theta": torch.zeros(len(clip), 2), "trajectory": torch.arange(len(clip))}


def test_is_the_published_formula():
    """The distance of the prediction from the next embedding, and a tenth of the embeddings' statistic."""
    objective = lejepa().requires_grad_(False)
    clip = torch.randn(5, 2, 16, 16, 16)
    terms = objective.losses(batch_of(clip))
    now, later = (objective.projector(pool(tokens(objective.encoder(c)))) for c in (clip[:, :, :8], clip[:, :, 8:]))
    slices = draw_slices(objective, 6, 16)
    prediction = objective.predictor[2](torch.nn.functional.gelu(objective.predictor[0](now)))
    distance = sum(float((p - z) ** 2) for p, z in zip(prediction.flatten(), later.flatten(), strict=True)) / 30
    statistic = (sigreg(now, slices) + sigreg(later, slices)) / 2
    assert float(terms["sim"]) == pytest.approx(distance, rel=1e-4)
    torch.testing.assert_close(terms["loss"], terms["sim"] + 0.1 * statistic)
    assert slices.shape == (6, 16)


def test_gradients_flow_through_both_clips():
    now, later = (torch.randn(4, 2, 8, 16, 16, requires_grad=True) for _ in range(2))
    lejepa(sigreg=0.0).losses(batch_of(torch.cat([now, later], 2)))["loss"].backward()
    assert now.grad.abs().max() > 0
    assert later.grad.abs().max() > 0


def test_constant_embeddings_are_detected():
    """A projector that forgets its clip: the prediction is perfect, the statistic 0.402 for every row."""
    objective = lejepa()
    torch.nn.init.zeros_(objective.projector[3].weight)
    torch.nn.init.zeros_(objective.projector[3].bias)
    torch.nn.init.zeros_(objective.predictor[2].weight)
    torch.nn.init.zeros_(objective.predictor[2].bias)
    with torch.no_grad():
        terms = objective.losses(batch_of(torch.randn(32, 2, 16, 16, 16)))
    assert float(terms["sim"]) == 0
    assert float(terms["sigreg"]) == pytest.approx(32 * 0.40205, rel=1e-4)


def test_embeddings_become_gaussian():
    """Trained on noise, where nothing can be predicted, the statistic comes near that of a Gaussian, 1.05."""
    objective = lejepa(sigreg=1.0, sim=0.0, slices=64)
    clip = torch.randn(64, 2, 16, 16, 16) * torch.rand(64, 2, 1, 1, 1)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    history = []
    for _ in range(50):
        loss = objective.losses(batch_of(clip))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert history[0] > 5
    assert history[-1] < 2
