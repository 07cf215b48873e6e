"""The teachers of all objectives that have one: an average over the steps of a run, and of a run cut in two."""

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from physrep.data.shear_flow import ShearFlow
from tests.objectives.test_objectives import make

OPTIONS = {
    "jepa_ema": {"projection": 6, "loss": "sigreg"},
    "masked_latent": {"vicreg": 0.01},
}


def objective_of(name, warmup=2):
    return make(name, lr=1e-2, warmup=warmup, **OPTIONS[name])


def fit(datasets, objective, folder=None, resume=None, accumulate=1):
    data = ShearFlow("shear_flow_tiny", root=str(datasets), frames=8, batch_size=4)
    kept = [ModelCheckpoint(folder, filename="{step}", every_n_train_steps=3, save_top_k=-1)] if folder else []
    trainer = Trainer(
        max_steps=6, accelerator="cpu", logger=False, callbacks=kept, enable_checkpointing=bool(kept),
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        limit_val_batches=0, accumulate_grad_batches=accumulate,
    )  # fmt: skip
    trainer.fit(objective, datamodule=data, ckpt_path=resume, weights_only=True)
    assert trainer.global_step == 6
    return objective


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", OPTIONS)
def test_is_the_moving_average_of_every_step(datasets, name, accumulate):
    """Recomputed from the weights after each of six optimiser steps, of one batch or two."""
    objective = objective_of(name, warmup=0)
    student = getattr(objective, "student", objective.encoder)
    seen, step = [], objective.optimizer_step

    def record(*args, **kwargs):
        step(*args, **kwargs)
        assert not any(m.training for m in objective.teacher.modules())
        seen.append([w.detach().clone() for w in student.parameters()])

    expected = [w.detach().double() for w in student.parameters()]
    objective.optimizer_step = record
    fit(datasets, objective, accumulate=accumulate)
    assert len(seen) == 6
    for weights in seen:
        expected = [0.99 * a + 0.01 * w.double() for a, w in zip(expected, weights, strict=True)]
    for a, w, now in zip(expected, objective.teacher.module.parameters(), seen[-1], strict=True):
        torch.testing.assert_close(w.double(), a, rtol=1e-4, atol=1e-6)
        assert not torch.equal(w, now)


@pytest.mark.parametrize("name", OPTIONS)
def test_three_and_three_steps_are_six(datasets, tmp_path, name):
    whole = fit(datasets, objective_of(name), tmp_path).state_dict()
    resumed = objective_of(name)
    torch.manual_seed(7)  # a resumed run owes nothing to the state that it starts in
    with torch.no_grad():
        for w in resumed.parameters():
            w.zero_()
    cut = fit(datasets, resumed, resume=str(tmp_path / "step=3.ckpt")).state_dict()
    assert whole.keys() == cut.keys()
    assert int(whole["teacher.n_averaged"]) == 7, "the initial weights and six steps"
    for key, value in whole.items():
        assert torch.equal(value, cut[key]), key
