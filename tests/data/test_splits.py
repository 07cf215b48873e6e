"""Held-out physics, shared starting states, label fractions; and leaks, planted to be caught."""

import shutil

import h5py
import numpy as np
import pytest

from physrep import probe
from physrep.data.shear_flow import ShearFlow
from physrep.data.splits import OUT, TEST, TRAIN, VALID, extrapolate, holdout, labelled, share_out, together
from physrep.data.starts import starts
from physrep.errors import UserError
from physrep.results import read
from physrep.tables import table

GRID = np.array([(a, b) for a in range(4) for b in range(7) for _ in range(5)], float)


def values(theta, side, to):
    return {tuple(row) for row in theta[side == to]}


def test_holdout_keeps_whole_combinations_and_train_has_every_value():
    side = holdout(GRID)
    parts = [values(GRID, side, to) for to in (TRAIN, VALID, TEST)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 28
    assert [len(part) for part in parts] == [28 - 6 - 3, 3, 6]
    for axis in range(2):
        assert {row[axis] for row in parts[0]} == set(GRID[:, axis])
        assert len({row[axis] for row in parts[1]}) == 3, "valid takes several values of each"


def test_holdout_of_values_that_do_not_recur():
    """Gray-Scott's kill rate has another value in every combination: no split could keep them all in train."""
    theta = np.repeat(np.array([(f, 4 * f + k) for f in range(4) for k in range(4)], float), 3, axis=0)
    side = holdout(theta)
    assert [len(values(theta, side, to)) for to in (TRAIN, VALID, TEST)] == [11, 2, 3]
    assert {row[0] for row in values(theta, side, TRAIN)} == set(range(4))


def test_extrapolate_keeps_what_lies_outside():
    side = extrapolate(GRID)
    inside, kept = GRID[side != TEST], GRID[side == TEST]
    assert set(inside[:, 0]) == {0, 1, 2}, "the highest of four"
    assert set(inside[:, 1]) == {1, 2, 3, 4, 5}, "both ends of seven"
    assert all(a == 3 or b in (0, 6) for a, b in kept)
    assert values(GRID, side, VALID) <= values(GRID, side, TRAIN), "no choice by what lies outside"
    assert (side == VALID).sum() == np.ceil(0.15 * len(inside))


def test_extrapolate_of_a_continuum_keeps_a_tenth_at_each_end():
    theta = np.random.default_rng(1).permutation(np.linspace(0, 1, 200))[:, None]
    side = extrapolate(theta)
    assert sorted(theta[side == TEST, 0]) == pytest.approx(np.linspace(0, 1, 200)[[*range(20), *range(180, 200)]])


def test_a_parameter_that_does_not_vary_is_no_extreme():
    side = extrapolate(np.column_stack([GRID, np.full(len(GRID), 3.0)]))
    assert (side == extrapolate(GRID)).all()


def test_a_state_that_recurs_is_on_one_side():
    side = np.array([TRAIN, TRAIN, VALID, TEST, TEST, TRAIN] * 20)
    states = [f"{i // 6}" if i % 6 else f"own {i}" for i in range(120)]
    found = together(side, states)
    for state in set(states):
        assert len({s for s, name in zip(found, states, strict=True) if name == state} - {OUT}) <= 1
    own = np.array([s.startswith("own") for s in states])
    assert (found[own] == side[own]).all(), "what starts alone stays where it was"
    assert ((found == side) | (found == OUT)).all()
    assert all((found[~own] == to).any() for to in (TRAIN, VALID, TEST))


def test_what_leaves_a_split_empty_is_refused():
    with pytest.raises(UserError, match="leaves train no trajectory of shear_flow, which has 1 combinations"):
        share_out("holdout", np.ones((6, 1)), list("abcdef"), "shear_flow")


@pytest.mark.parametrize("kind", ["holdout", "extrapolate"])
def test_the_data_module_shares_out_everything_once(datasets, kind):
    data = ShearFlow(root=str(datasets), name="shear_flow_tiny", frames=8, split=kind)
    parts = {split: data.theta(split) for split in ("train", "valid", "test")}
    assert sum(map(len, parts.values())) == 48
    every = [{tuple(row) for row in part} for part in parts.values()]
    assert every[2].isdisjoint(every[0]) and every[0].isdisjoint(every[1]) == (kind == "holdout")
    states = [set(starts(data.files(split), data.start)) for split in parts]
    assert len(set.union(*states)) == sum(map(len, states))
    well = ShearFlow(root=str(datasets), name="shear_flow_tiny", frames=8)
    assert data.fingerprint == well.fingerprint
    assert data.statistics["theta_mean"] != well.statistics["theta_mean"]
    assert (data.folder / f"stats_{kind}.yaml").exists()
    data.setup("fit")
    raw = next(iter(data.loader("test")))
    trajectory = int(raw["trajectory"][0])
    header, row = data.files("test").locate(trajectory)
    with h5py.File(header.path) as file:
        tracer = file["t0_fields/tracer"][row, : data.frames]
    np.testing.assert_array_equal(raw["clip"][0, 0], tracer)
    np.testing.assert_allclose(
        10 ** (raw["theta"][0].numpy() * data.statistics["theta_std"] + data.statistics["theta_mean"]),
        [header.scalars[name][row] for name in ("Reynolds", "Schmidt")], rtol=1e-5,
    )  # fmt: skip


def test_statistics_are_those_of_the_new_train(datasets):
    data = ShearFlow(root=str(datasets), name="shear_flow_tiny", frames=8, split="holdout")
    train = data.files("train")
    clips = np.stack([train.read(i, 0, train.header.frames) for i in range(train.trajectories)]).astype(float)
    assert data.statistics["mean"] == pytest.approx(clips.mean((0, 2, 3, 4)).tolist(), abs=1e-6)
    assert data.statistics["std"] == pytest.approx(clips.std((0, 2, 3, 4)).tolist(), rel=1e-5)


def test_labels_are_nested_and_stratified():
    theta = np.random.default_rng(0).permutation(GRID)
    chosen = {share: labelled(theta, share) for share in (0.01, 0.05, 0.1, 0.5, 1.0)}
    assert [len(c) for c in chosen.values()] == [2, 7, 14, 70, 140]
    for less, more in zip(list(chosen.values()), list(chosen.values())[1:], strict=False):
        assert set(less) < set(more)
    assert set(labelled(theta, 0.1, seed=1)) != set(chosen[0.1]), "seeds draw other trajectories"
    for numbers in chosen.values():
        counts = np.unique(theta[numbers], axis=0, return_counts=True)[1]
        assert counts.max() - counts.min() <= 1 and len(counts) == min(len(numbers), 28)


def test_labels_are_told_to_those_who_read_them_alone(datasets):
    data = ShearFlow(root=str(datasets), name="shear_flow_tiny", frames=8, labels=0.25)
    every = data.windows("train")
    data.told = True
    some = data.windows("train")
    assert set(some[:, 0]) == set(data.labelled("train")) and len(set(some[:, 0])) == 6
    assert len(set(every[:, 0])) == 24
    assert len(set(data.windows("valid")[:, 0])) == 3
    assert len(set(data.windows("test")[:, 0])) == 12, "test is whole"
    with pytest.raises(UserError, match=r"data\.labels=0: is a share"):
        ShearFlow(root=str(datasets), name="shear_flow_tiny", labels=0)


def test_a_planted_leak_is_caught(own_datasets):
    """One trajectory on both sides: its first frame tells, even if the rest differs."""
    folder = own_datasets / "shear_flow_tiny" / "data"
    train, test = (sorted((folder / split).glob("*.hdf5"))[0] for split in ("train", "test"))
    with h5py.File(train) as source, h5py.File(test, "r+") as target:
        for name in ("t0_fields/tracer", "t1_fields/velocity"):
            target[name][1, 0] = source[name][2, 0]
    with pytest.raises(UserError, match="1 trajectories of test are in train"):
        _ = ShearFlow(root=str(own_datasets), name="shear_flow_tiny", frames=8).shared


def test_a_shared_state_is_caught_or_said(own_datasets):
    """One flow under two Schmidt numbers, as in The Well: refused of data that should have none."""
    folder = own_datasets / "shear_flow_tiny" / "data"
    train, test = folder / "train", folder / "test"
    with (
        h5py.File(train / "shear_flow_Reynolds_100_Schmidt_0.5.hdf5") as source,
        h5py.File(test / "shear_flow_Reynolds_100_Schmidt_2.hdf5", "r+") as target,
    ):
        for name in ("t0_fields/tracer", "t1_fields/velocity"):
            target[name][1, 0] = source[name][2, 0]
    options = {"root": str(own_datasets), "name": "shear_flow_tiny", "frames": 8}
    assert ShearFlow(**options).shared == 1
    assert ShearFlow(**options).recurring("test") == [*range(12)]
    with pytest.raises(UserError, match="1 start from states that train has"):
        _ = type("Own", (ShearFlow,), {"shared_starts": False})(**options).shared
    data = ShearFlow(**options, split="holdout")
    assert data.shared == 0
    for split, files in data.splits.items():
        states = starts(files)
        assert data.recurring(split) == [states.index(state) for state in states]


def test_states_that_recur_in_test_are_drawn_together(own_datasets, tmp_path):
    """One flow under two Schmidt numbers: rows say which trajectories, and the table's interval counts flows."""
    test = own_datasets / "shear_flow_tiny" / "data" / "test"
    with (
        h5py.File(test / "shear_flow_Reynolds_100_Schmidt_0.5.hdf5") as source,
        h5py.File(test / "shear_flow_Reynolds_100_Schmidt_2.hdf5", "r+") as target,
    ):
        target["t1_fields/velocity"][0, 0] = source["t1_fields/velocity"][1, 0]
        target["t0_fields/tracer"][0, 0] = source["t0_fields/tracer"][1, 0]
    data = ShearFlow(root=str(own_datasets), name="shear_flow_tiny", frames=8)
    first, again = (
        [i for i, theta in enumerate(data.files("test").theta(["Reynolds", "Schmidt"])) if tuple(theta) == of][n]
        for n, of in ((1, (100, 0.5)), (0, (100, 2)))
    )
    assert data.recurring("test") == [first if i == again else i for i in range(12)]
    cfg = [f"data.root={own_datasets}", f"runs={tmp_path}", "controls=[mean]", "probe=ridge", "data.frames=8"]
    probe.main(["data=shear_flow_tiny", *cfg])
    rows = read(tmp_path / "dev" / "results.jsonl")
    assert {tuple(row.starts) for row in rows} == {tuple(data.recurring("test"))}
    (section,) = table(rows, resamples=20)
    assert "over the 11 states that trajectories start from" in " ".join(section.notes)
    assert "11 starting states are few" in " ".join(section.notes)


def test_a_probe_that_looks_at_test_is_caught(datasets, tmp_path, monkeypatch):
    from physrep.probes.closed_form import Ridge

    class Peeks(Ridge):
        def fit(self, train, valid):
            held.theta("test")
            return super().fit(train, valid)

    cfg = ["data=shear_flow_tiny", f"data.root={datasets}", f"runs={tmp_path}", "controls=[statistics]", "probe=ridge"]
    made = probe.control_subject

    def subject(*given):
        nonlocal held
        found = made(*given)
        held = found.data
        return found

    held = None
    monkeypatch.setattr(probe, "control_subject", subject)
    monkeypatch.setattr("physrep.probes.closed_form.Ridge.fit", Peeks.fit)
    with pytest.raises(RuntimeError, match="test is looked at before everything is chosen"):
        probe.main(cfg)
    assert not (tmp_path / "dev" / "results.jsonl").exists()
    shutil.rmtree(tmp_path / "dev", ignore_errors=True)
