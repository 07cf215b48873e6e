"""Two views: each loss is its formula on pooled and projected tokens; weights; slices."""

import pytest
import torch
from torch.nn import functional as F

from physrep.encoders.conv import ConvEncoder
from physrep.errors import UserError
from physrep.losses import directions, sigreg
from physrep.objectives.base import Objective
from physrep.objectives.lejepa import LeJepa
from physrep.objectives.views import Views, draw_slices, pool

SEED = 5  # of the slices


def views(**options):
    torch.manual_seed(0)
    kernels = ((3, 3, 3), (3, 3))
    encoder = ConvEncoder(2, (4, 8), (1, 1), (4, 4, 4), ((4, 4, 4), (2, 2, 2)), kernels, 0.1)
    return Views(encoder, projection=6, **options)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    clip = torch.randn(5, 2, 16, 16, 16, generator=generator)
    return {"clip": clip, "theta": torch.zeros(5, 2), "trajectory": torch.tensor([3, 1, 4, 1, 5])}


def rows(objective, batch):
    """Both views' projections, layer by layer."""
    found = []
    for clip in (batch["clip"][:, :, :8], batch["clip"][:, :, 8:]):
        tokens = objective.encoder(clip).flatten(2)
        x = torch.cat([tokens.mean(2), (tokens.var(2, correction=0) + 1e-6).sqrt()], dim=1)
        first, norm, _, last = objective.projector
        x = first(x)
        x = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt() * norm.weight + norm.bias
        found.append(last(x.relu()))
    return found


def vicreg(x, y, batch):
    """25 times the distance, 25 times each view's hinge, and each view's covariances."""
    total = 25 * (x - y).square().mean()
    for v in (x, y):
        total = total + 25 * torch.relu(1 - (v.var(0, correction=0) + 1e-4).sqrt()).mean()
        total = total + (torch.cov(v.T) * (1 - torch.eye(6))).square().sum() / 6
    return total


def barlow(x, y, batch):
    c = torch.corrcoef(torch.cat([x, y], 1).T)[:6, 6:]
    return (1 - c.diagonal()).square().sum() + 0.005 * (c * (1 - torch.eye(6))).square().sum()


def ntxent(x, y, batch):
    both, owner, total = F.normalize(torch.cat([x, y]), dim=1), batch["trajectory"].repeat(2), 0.0
    for i in range(10):
        others = [both[(i + 5) % 10], *(row for row, o in zip(both, owner, strict=True) if o != owner[i])]
        total = total - torch.stack([both[i] @ other / 0.1 for other in others]).log_softmax(0)[0] / 10
    return total


def lejepa(x, y, batch):
    """Both views' distance from their centre, and the mean of their statistics."""
    centre, slices = (x + y) / 2, directions(6, 1024, SEED)
    distance = torch.stack([(v - centre).square().mean() for v in (x, y)]).mean()
    return 0.95 * distance + 0.05 * (sigreg(x, slices) + sigreg(y, slices)) / 2


@pytest.mark.parametrize(
    ("loss", "formula"), [("vicreg", vicreg), ("barlow", barlow), ("ntxent", ntxent), ("sigreg", lejepa)]
)
def test_losses_are_the_published_formulas(loss, formula, batch, monkeypatch):
    monkeypatch.setattr("physrep.objectives.views.step_seed", lambda *_: SEED)
    objective = views(loss=loss)
    terms = objective.losses(batch)
    x, y = rows(objective, batch)
    torch.testing.assert_close(terms["loss"], formula(x, y, batch), rtol=1e-3, atol=1e-4)
    total = sum(objective.weights[name] * value for name, value in terms.items() if name != "loss")
    torch.testing.assert_close(terms["loss"], total)


def test_weights_replace_the_published_ones_by_term(batch):
    plain, more = views(), views(weights={"std": 100.0})
    assert more.weights == {"sim": 25.0, "std": 100.0, "cov": 1.0}
    a, b = plain.losses(batch), more.losses(batch)
    torch.testing.assert_close(b["loss"] - a["loss"], 50 * a["std"])
    assert views(loss="barlow").weights["off"] == 0.005, "the published ones are left as they are"
    with pytest.raises(UserError, match=r"objective\.weights\.sdt: no term of vicreg; did you mean std"):
        views(weights={"sdt": 1.0})
    with pytest.raises(UserError, match=r"objective\.weights\.std: no term of ntxent; there is ntxent"):
        views(loss="ntxent", weights={"std": 1.0})


def test_temperature_sharpens(batch):
    assert views(loss="ntxent", temperature=0.05).losses(batch)["loss"] != views(loss="ntxent").losses(batch)["loss"]


@pytest.mark.parametrize("loss", ["vicreg", "barlow", "ntxent", "sigreg"])
def test_collapsed_embeddings_are_punished(loss, batch):
    """All rows alike cost more than rows of a Gaussian, both views agreeing."""
    torch.manual_seed(0)
    many = {"clip": torch.randn(64, 2, 16, 16, 16), "theta": torch.zeros(64, 2), "trajectory": torch.arange(64)}
    cost = {}
    for name, made in {"spread": torch.randn(64, 6), "collapsed": torch.full((64, 6), 0.3)}.items():
        objective = views(loss=loss)
        objective.projector.forward = lambda x, made=made: made
        cost[name] = float(objective.losses(many)["loss"])
    assert cost["collapsed"] > 1.5 * cost["spread"]
    assert cost["collapsed"] > 1


@pytest.mark.parametrize("kind", [Views, LeJepa])
def test_slices_change_with_the_step_and_not_with_the_rank(kind, monkeypatch, batch):
    at = {"global_step": 3, "global_rank": 0}
    for name in ("global_step", "global_rank"):
        monkeypatch.setattr(Objective, name, property(lambda _, name=name: at[name]))
    objective = views() if kind is Views else LeJepa(views().encoder)

    def slices(**now):
        at.update(now)
        return draw_slices(objective, 8, 4)

    first = slices()
    torch.testing.assert_close(first.norm(dim=0), torch.ones(4))
    assert torch.equal(first, slices(global_rank=1))
    assert not torch.equal(first, slices(global_step=4))
    objective.eval()
    fixed = slices()
    assert torch.equal(fixed, slices(global_step=5, global_rank=0))
    objective.train().seed = 1
    assert not torch.equal(first, slices(global_step=3))


def test_pooling_does_not_see_the_order_of_tokens():
    x = torch.randn(3, 7, 5)
    torch.testing.assert_close(pool(x), pool(x[:, torch.randperm(7)]))
