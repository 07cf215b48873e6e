"""What the training steps of benchmarks/ stand beside: the same function, step by step."""

import pytest
import torch

from benchmarks.step import FORMS, SETS, make
from physrep.optim import adamw


@pytest.mark.slow
@pytest.mark.parametrize("case", [name for name in SETS if name != "published"])
def test_every_contender_takes_the_same_two_steps(case, monkeypatch):
    encoder, objective, (_, *clip), *plan, names = SETS[case]
    monkeypatch.setitem(SETS, case, (encoder, objective, (4, *clip), *plan, names))
    curves = []
    for form in {FORMS[name][0] for name in names}:
        model, batch = make(case, form)
        optimizer, curve = adamw(model, 1e-3, 0.05, (0.9, 0.95)), []
        for _ in range(2):
            optimizer.zero_grad()
            loss = model.losses(batch)["loss"]
            loss.backward()
            optimizer.step()
            curve.append(float(loss.detach()))
        curves.append(curve)
    assert len(curves) == (3 if encoder == "conv_tiny" else 2)
    assert all(curve == pytest.approx(curves[0], rel=1e-4) for curve in curves)
    assert curves[0][0] != curves[0][1]
    assert torch.isfinite(torch.tensor(curves)).all()
