"""The control with labels: MSE on standardised parameters through the probe's own head."""

import pytest
import torch

from physrep.encoders.base import tokens
from physrep.encoders.conv import ConvEncoder
from physrep.errors import UserError
from physrep.objectives.supervised import Supervised
from physrep.probes.heads import AttentiveHead
from physrep.probes.module import Attentive


def supervised(parameters=2, **options):
    torch.manual_seed(0)
    kernels = ((3, 3, 3), (3, 3))
    encoder = ConvEncoder(2, (4, 8), (1, 1), (4, 4, 4), ((4, 4, 4), (2, 2, 2)), kernels, 0.1)
    return Supervised(encoder, parameters, **options)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    clip, theta = torch.randn(6, 2, 8, 16, 16, generator=generator), torch.randn(6, 2, generator=generator)
    return {"clip": clip, "theta": theta, "trajectory": torch.arange(6)}


def test_is_the_mse_of_the_heads_prediction(batch):
    objective = supervised()
    terms = objective.losses(batch)
    total = 0.0
    for i in range(6):
        prediction = objective.head(objective.encode(batch["clip"][i : i + 1]))[0]
        total += sum(float((p - t) ** 2) for p, t in zip(prediction, batch["theta"][i], strict=True)) / 12
    assert float(terms["mse"]) == pytest.approx(total, rel=1e-4)
    assert terms["loss"] is terms["mse"]


def test_head_is_the_attentive_probes(batch):
    objective = supervised()
    assert type(objective.head) is type(Attentive().head(8, 2)) is AttentiveHead
    assert [w.shape for w in objective.head.parameters()] == [w.shape for w in Attentive().head(8, 2).parameters()]


def test_probes_get_the_encoders_tokens(batch):
    objective = supervised()
    torch.testing.assert_close(objective.encode(batch["clip"]), tokens(objective.encoder(batch["clip"])))
    assert objective.encode(batch["clip"]).shape == (6, 4, 8)


def test_the_first_gradient_reaches_the_encoder(batch):
    objective = supervised()
    objective.losses(batch)["loss"].backward()
    assert all(w.grad is not None and w.grad.abs().max() > 0 for w in objective.encoder.parameters())


def test_learns_labels_and_nothing_else_moves_the_loss(batch):
    """It can learn a parameter by heart; permuted labels have another loss, other trajectory numbers have not."""
    objective = supervised()
    before = objective.losses(batch)["loss"]
    assert objective.losses(batch | {"theta": batch["theta"].flip(0)})["loss"] != before
    assert objective.losses(batch | {"trajectory": torch.zeros(6)})["loss"] == before
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    for _ in range(40):
        loss = objective.losses(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1 * before


def test_data_without_parameters_are_refused():
    with pytest.raises(UserError, match=r"no parameter to learn; give data\.targets") as error:
        supervised(parameters=0)
    assert "\n" not in str(error.value)
