"""What benchmarks/ lets stand beside each other: the same function, the same windows, the same embeddings."""

import pytest
import torch

from benchmarks import embed, loader
from benchmarks.step import FORMS, SETS, make
from physrep.data.shear_flow import ShearFlow
from physrep.data.well import WellSplit
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


@pytest.fixture
def folder(tmp_path):
    loader.make(tmp_path / "few", ShearFlow, {"tracer": 0, "pressure": 0, "velocity": 1}, (1, 18, 32, 64), 2)
    return tmp_path / "few"


def test_the_plain_loader_reads_what_ours_does(folder):
    split = WellSplit(folder / "data" / "train")
    windows = split.windows(16, 1)
    plain = loader.Plain(split, windows, 16, finish=False)
    assert len(plain) == len(windows) == 6
    for clip, (trajectory, start) in zip(plain, windows.tolist(), strict=True):
        assert torch.equal(clip, torch.from_numpy(split.read(trajectory, start, 16)))


def test_every_contender_embeds_alike(folder, monkeypatch):
    monkeypatch.setattr(embed, "BATCH", 4)
    number, rows = embed.rows_of(folder, "conv_tiny")
    plain, (alone,), passes, together = (row() for row in rows.values())
    assert len(plain) == number == 6
    torch.testing.assert_close(alone, plain, atol=2e-3, rtol=2e-3)
    assert len(passes) == len(together) > 2
    assert all(torch.equal(one, other) for one, other in zip(passes, together, strict=True))
    assert torch.equal(together[0], alone)
