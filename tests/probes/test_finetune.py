"""Fine-tuning: starts from the run, moves the encoder, is a function of the seed, chooses on valid, scores test."""

import pytest
import torch

from physrep.data.shear_flow import ShearFlow
from physrep.errors import UserError
from physrep.frozen import Frozen
from physrep.probes.finetune import FineTune
from tests.objectives.test_objectives import make


@pytest.fixture(scope="module")
def data(datasets):
    return ShearFlow("shear_flow_tiny", root=str(datasets), frames=8, batch_size=8, eval_step=4)


def frozen(data, name="jepa"):
    return Frozen(make(name), data.meta(), step=0)


def test_learns_the_parameters_and_moves_the_encoder_but_not_the_runs(data):
    run = frozen(data)
    before = {k: v.clone() for k, v in run.objective.state_dict().items()}
    tuned = FineTune(steps=40, lr=3e-3, warmup=5, checks=4).fit(run, data)
    assert all(torch.equal(v, run.objective.state_dict()[k]) for k, v in before.items())
    moved = tuned.model.objective.state_dict()
    assert any(not torch.equal(v, moved[k]) for k, v in before.items() if k.startswith("encoder."))
    assert all(torch.equal(v, moved[k]) for k, v in before.items() if k.startswith("predictor.")), "not part of encode"
    assert len(tuned.predict("test")[0]) == len(data.windows("test", 4))
    predicted, truth = tuned.predict("train")
    assert (predicted - truth.theta).square().mean() < 0.5
    predicted, truth = tuned.predict("valid")
    assert float((predicted - truth.theta).square().mean()) == pytest.approx(tuned.chosen["valid_mse"], rel=1e-4)
    assert tuned.chosen["step"] in {10, 20, 30, 40}


def test_is_a_function_of_the_seed_and_leaves_random_states_alone(data):
    run, state = frozen(data), torch.get_rng_state()
    tuned = [FineTune(steps=2, warmup=0, checks=1, seed=seed).fit(run, data) for seed in (0, 0, 1)]
    assert torch.equal(state, torch.get_rng_state())
    one, two, other = (each.predict("test")[0] for each in tuned)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_a_teacher_is_what_is_tuned(data):
    tuned = FineTune(steps=2, warmup=0, checks=1).fit(run := frozen(data, "jepa_ema"), data)
    moved = tuned.model.objective.state_dict()
    names = {k for k, v in run.objective.state_dict().items() if not torch.equal(v, moved[k])}
    assert names
    assert all(name.startswith("teacher.") for name in names)


@pytest.mark.parametrize("options", [{"checks": 0}, {"steps": 2, "checks": 3}, {"lr": 0.0}])
def test_options_out_of_range(options):
    with pytest.raises(UserError):
        FineTune(**options)


def test_divergence_is_one_line(data):
    with pytest.raises(UserError, match="fine-tuning has diverged with .*; lower it"):
        FineTune(steps=3, lr=1e30, warmup=0, checks=1).fit(frozen(data), data)
