"""Planted faults are found and named, and nothing else is; clean and simulated sets pass."""

import re
import shutil
import tracemalloc
from itertools import groupby
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from physrep import verify as module
from physrep.config import compose
from physrep.data.module import WellDataModule
from physrep.data.starts import starts
from physrep.data.well import WellSplit, read_header, write
from physrep.errors import UserError
from physrep.simulate.engine import simulate
from physrep.verify import lines, main, read, slabs, verify

TARGETS = {"Reynolds": "log10", "Schmidt": "log10"}
ODD, OTHER = "shear_flow_Reynolds_400_Schmidt_2.hdf5", "shear_flow_Reynolds_100_Schmidt_0.5.hdf5"
ARGV = ["data=well", "data.name=shear_flow_tiny", "data.targets={Reynolds: log10, Schmidt: log10}"]


def check(root: Path, name: str = "shear_flow_tiny", fraction: float = 1.0, targets=TARGETS, kind=WellDataModule):
    return verify(kind(name, root=str(root), targets=targets), fraction)


def said(report, verdict: str) -> list[tuple[str, str]]:
    return [(c, f"{f.where}: {f.what}") for c, found in report.found.items() for f in found if f.verdict == verdict]


def faults(report) -> list[tuple[str, str]]:
    return said(report, "FAIL")


@pytest.fixture
def folder(own_datasets: Path) -> Path:
    """The data of a set that may be spoilt, of two files a split."""
    for path in own_datasets.glob("*/*/*/*"):
        if path.name not in (ODD, OTHER):
            path.unlink()
    return own_datasets / "shear_flow_tiny" / "data"


def test_a_clean_set_passes(own_datasets, capsys):
    assert main([*ARGV, f"data.root={own_datasets}"]) is None
    text = capsys.readouterr().out.splitlines()
    assert all(re.fullmatch(r"(ok|note)\s+[a-z]+\s+\S.*", line) for line in text)
    assert list(dict.fromkeys(line.split()[1] for line in text)) == [*module.SOUND, "all"]
    (note,) = [line for line in text if line.startswith("note")]
    assert "stats.yaml is not there" in note
    assert "combinations of Reynolds, Schmidt: train 4, valid 4, test 4" in "\n".join(text)
    assert "12 of 12 files read" in text[-1]
    assert "48 of 48 trajectories whole: FAIL 0, note 1" in text[-1]


def test_statistics_of_our_own_are_right(folder):
    data = WellDataModule("shear_flow_tiny", root=str(folder.parents[1]), targets=TARGETS)
    assert data.statistics["mean"]
    for fraction in (1.0, 0.4, 0.001):
        report = verify(data, fraction)
        assert not faults(report)
        assert not report.found["statistics"]


# --- Faults, each planted in one file: what it does to it, the check that finds it and what that says


def attribute(node: str, name: str, value=None):
    def plant(f: h5py.File) -> None:
        del f[node].attrs[name]
        if value is not None:
            f[node].attrs[name] = value

    return plant


def lost(node: str):
    def plant(f: h5py.File) -> None:
        del f[node]

    return plant


def stored(node: str, change):
    """Store a dataset anew, as `change` makes it of the old one."""

    def plant(f: h5py.File) -> None:
        old, kept = f[node][()], dict(f[node].attrs)
        del f[node]
        f.create_dataset(node, data=change(old)).attrs.update(kept)

    return plant


def values(node: str, *places):
    """Write into a dataset: places are pairs of an index and a value, or an index to take the value from."""

    def plant(f: h5py.File) -> None:
        for index, value in places:
            f[node][index] = f[node][value] if isinstance(value, tuple) else value

    return plant


def both(*plants):
    def plant(f: h5py.File) -> None:
        for each in plants:
            each(f)

    return plant


def every(*places):
    return both(*(values(n, *places) for n in ("t0_fields/tracer", "t0_fields/pressure", "t1_fields/velocity")))


BC = "boundary_conditions/x_periodic"
FAULTS = {
    "no boundaries": (lost("boundary_conditions"), "structure", "group /boundary_conditions is missing"),
    "no scalars": (lost("scalars"), "structure", "group /scalars is missing"),
    "scalar (1,)": (stored("scalars/Schmidt", lambda x: x[None]), "structure", "/scalars/Schmidt has shape (1,), but"),
    "mask False": (values(f"{BC}/mask", ((...,), False)), "structure", f"/{BC}/mask is False throughout"),
    "fields' order": (
        attribute("t0_fields", "field_names", ["pressure", "tracer"]),
        "order",
        "fields: pressure (rank 0), tracer (rank 0), velocity (rank 1); in 5 of 6 files tracer (rank 0), pressure",
    ),
    "scalars' order": (
        attribute("scalars", "field_names", ["Schmidt", "Reynolds"]),
        "order",
        "scalars: Schmidt, Reynolds; in 5 of 6 files Reynolds, Schmidt",
    ),
    "another name": (attribute("/", "dataset_name", "euler"), "order", "dataset_name: euler; in 5 of 6 files shear"),
    "time falls": (values("dimensions/time", ((5,), 0.1)), "time", "time does not rise from entry 4 to 5"),
    "time NaN": (values("dimensions/time", ((5,), np.nan)), "time", "time is not finite"),
    "axis repeats": (values("dimensions/y", ((7,), (6,))), "coordinates", "y does not rise from entry 6 to 7"),
    "NaN": (
        values("t1_fields/velocity", ((3, 7, 2, 5, 1), np.nan), ((3, 9, 2, 5, 0), np.inf)),
        "values",
        "/t1_fields/velocity, trajectory 3, frame 7: NaN or infinity, 2 values in all",
    ),
    "frozen": (every(((2, 8), (2, 7)), ((2, 12), (2, 11))), "motion",
               "trajectory 2: frame 7 is frozen amid motion (2 such) in tracer, pressure, velocity"),
    "frozen field": (values("t0_fields/tracer", ((4, 8), (4, 7))), "motion",
                     "trajectory 4: frame 7 is frozen amid motion (1 such) in tracer"),
    "loop": (every(((1, slice(12, 18)), (1, slice(3, 9)))), "motion",
             "trajectory 1: frame 3 comes again as frame 12 (6 such) in tracer, pressure, velocity"),
    "name": (both(values("scalars/Reynolds", ((), 200.0)), attribute("/", "Reynolds", 200.0)), "names",
             "the name says Reynolds 400, /scalars/Reynolds is 200"),
    "target lost": (
        both(attribute("scalars", "field_names", ["Reynolds"]), attribute("/", "simulation_parameters", ["Reynolds"])),
        "targets",
        "/scalars holds no 'Schmidt', which is a target",
    ),
    "target negative": (
        both(values("scalars/Schmidt", ((), -0.5)), attribute("/", "Schmidt", -0.5)),
        "targets",
        "target Schmidt is -0.5, so it has no log10",
    ),
    "copy inside": (every(((5,), (0,))), "copies", f"trajectory 5 is trajectory 0 of train/{ODD}"),
}  # fmt: skip
ALSO = {"target lost": {"order"}, "target negative": {"names"}}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(folder, name):
    plant, where, what = FAULTS[name]
    with h5py.File(folder / "train" / ODD, "r+") as f:
        plant(f)
    found = faults(check(folder.parents[1]))
    assert any(c == where and text.startswith(f"train/{ODD}: ") and what in text for c, text in found), found
    assert all(f"train/{ODD}" in text for _, text in found)
    assert {c for c, _ in found} - ALSO.get(name, set()) == {where}


@pytest.mark.parametrize("what", ["truncated", "not a readable HDF5 file"])
def test_a_broken_file_hides_nothing_else(folder, what, capsys):
    path = folder / "train" / ODD
    path.write_bytes(path.read_bytes()[:-5000] if what == "truncated" else b"nonsense")
    with h5py.File(folder / "valid" / OTHER, "r+") as f:
        f["t0_fields/tracer"][1, 3, 2, 2] = np.nan
    with h5py.File(folder / "test" / OTHER, "r+") as f:
        f["t0_fields"].attrs["field_names"] = ["pressure", "tracer"]
        f.attrs["Schmidt"] = 3.0
    with pytest.raises(SystemExit) as exit_:
        main([*ARGV, f"data.root={folder.parents[1]}"])
    assert exit_.value.code == 1
    text = capsys.readouterr().out
    assert f"FAIL  structure    train/{ODD}: {what}" in text
    assert f"FAIL  structure    test/{OTHER}: attribute Schmidt of / is 3, but" in text
    assert f"FAIL  order        test/{OTHER}: fields: pressure (rank 0), tracer (rank 0)" in text
    assert f"FAIL  values       valid/{OTHER}: /t0_fields/tracer, trajectory 1, frame 3" in text
    assert re.search(r"FAIL  all .* 5 of 6 files read, .* FAIL 4, note 3\n$", text)


def test_all_offenders_are_counted(folder):
    for i, path in enumerate(sorted(folder.glob("*/*"))):
        with h5py.File(path, "r+") as f:
            del f[BC]
            if i:
                f["t0_fields/tracer"][0, 1, 0, 0] = np.nan
                f["t0_fields/tracer"][1, i, 0, 0] = np.nan
    text = list(lines(check(folder.parents[1])))
    assert "note  structure    all files: x has no boundary condition of its own; readers take it for open" in text
    first, *_, last = (line for line in text if line.startswith("FAIL  values"))
    place = f"train/{OTHER}, train/{ODD}, valid/{OTHER} and 2 more"
    assert first.startswith(
        f"FAIL  values       {place}: /t0_fields/tracer, trajectory 0, frame 1: NaN or infinity, 1 v"
    )
    assert last == "FAIL  values       and 1 more"


def test_unreadable_values_are_named(folder):
    path = folder / "valid" / ODD
    with h5py.File(path, "r+") as f:
        old, kept = f["t0_fields/tracer"][()], dict(f["t0_fields/tracer"].attrs)
        del f["t0_fields/tracer"]
        new = f.create_dataset("t0_fields/tracer", data=old, chunks=(1, *old.shape[1:]), compression="gzip")
        new.attrs.update(kept)
        chunk = new.id.get_chunk_info(1)
    raw = bytearray(path.read_bytes())
    raw[chunk.byte_offset : chunk.byte_offset + 1000] = b"\xff" * 1000
    path.write_bytes(raw)
    ((where, text),) = faults(check(folder.parents[1]))
    assert where == "values"
    assert text.startswith(f"valid/{ODD}: /t0_fields/tracer, trajectory 1: cannot be read")


def test_exchanged_fields_are_found_by_what_they_hold(folder):
    for path in folder.glob("*/*"):
        with h5py.File(path, "r+") as f:
            f["t0_fields/pressure"][...] = 0.02 * f["t0_fields/pressure"][...] + 1
            f["t1_fields/velocity"][..., 1] += 30
    assert not faults(check(folder.parents[1]))
    with h5py.File(folder / "test" / ODD, "r+") as f:
        a, b = f["t0_fields/tracer"][...], f["t0_fields/pressure"][...]
        f["t0_fields/tracer"][...], f["t0_fields/pressure"][...] = b, a
    with h5py.File(folder / "valid" / OTHER, "r+") as f:
        f["t1_fields/velocity"][...] = f["t1_fields/velocity"][...][..., ::-1]
    for fraction in (1.0, 0.3):
        fields, components = faults(check(folder.parents[1], fraction=fraction))
        assert fields[0] == components[0] == "content"
        assert fields[1].startswith(f"test/{ODD}: fields tracer and pressure are exchanged")
        assert components[1].startswith(f"valid/{OTHER}: components velocity_x and velocity_y are exchanged")


def test_few_files_are_not_compared(folder):
    for path in folder.glob("*/*"):
        if path.name != ODD or path.parent.name == "test":
            path.unlink()
    report = check(folder.parents[1], targets={})
    assert ("content", ": 2 files of one kind are too few to tell whether fields are exchanged in one") in said(
        report, "note"
    )
    assert [c for c, _ in faults(report)] == ["structure"]
    assert faults(report)[0][1].endswith("data/test holds no .hdf5 file")


def test_nothing_readable_is_said(folder):
    for path in folder.glob("*/*"):
        path.write_bytes(b"")
    report = check(folder.parents[1])
    assert list(report.found) == ["structure"]
    assert [line.split()[0] for line in lines(report)] == ["FAIL", "FAIL"]


@pytest.mark.parametrize("fraction", [1.0, 0.01])
def test_a_trajectory_in_two_splits_is_found(folder, fraction):
    with h5py.File(folder / "train" / OTHER) as f, h5py.File(folder / "test" / ODD, "r+") as g:
        for name in ("t0_fields/tracer", "t0_fields/pressure", "t1_fields/velocity"):
            g[name][2] = f[name][3]
    found = dict(faults(check(folder.parents[1], fraction=fraction)))
    assert found["copies"] == f"test/{ODD}: trajectory 2 is trajectory 3 of train/{OTHER}"
    assert found["starts"].startswith(": leakage: 1 of test's 6 trajectories start from a state of train's, such as ")
    assert found["starts"].endswith(f"trajectory 2 of test/{ODD} and 3 of train/{OTHER}")


@pytest.mark.parametrize("fraction", [1.0, 0.01])
@pytest.mark.parametrize("known", [False, True])
def test_a_shared_start_is_leakage_unless_it_is_known(folder, known, fraction):
    class Flow(WellDataModule):
        start = ("tracer", "velocity")
        shared_starts = known

    for path in folder.glob("*/*"):
        with h5py.File(path, "r+") as f:
            f["t0_fields/pressure"][:, 0] = 0  # says nothing of the state
    with h5py.File(folder / "train" / OTHER, "r+") as f, h5py.File(folder / "valid" / ODD, "r+") as g:
        for name in ("t0_fields/tracer", "t1_fields/velocity"):
            g[name][0, 0] = f[name][1, 0] = f[name][0, 0]
    report = check(folder.parents[1], fraction=fraction, kind=Flow)
    notes, bad = said(report, "note"), faults(report)
    leak = "leakage: 1 of valid's 6 trajectories start from a state of train's, such as trajectory 0 of"
    assert [c for c, text in (notes if known else bad) if leak in text] == ["starts"]
    assert not [c for c, text in (bad if known else notes) if leak in text]
    assert ("starts", ": train's 12 trajectories start from 11 distinct states") in notes
    assert {c for c, _ in bad} <= {"starts"}


def test_starts_are_those_of_the_data_module(folder):
    with h5py.File(folder / "train" / OTHER, "r+") as f:
        f["t0_fields/tracer"][:, 0] = 2.0
        f["t1_fields/velocity"][2, 0] = f["t1_fields/velocity"][4, 0]
        f["t0_fields/pressure"][1, 0] = f["t0_fields/pressure"][5, 0]
    split = WellSplit(folder / "train")
    for fields in ((), ("velocity",), ("tracer", "velocity"), ("pressure",)):
        ours = [t.start for h in split.headers for t in module.scan(f"train/{h.path.name}", h, fields, 0.2)]
        theirs = starts(split, fields)
        assert [ours.index(s) for s in ours] == [theirs.index(s) for s in theirs]
    assert len(set(theirs)) == 11


def test_a_wrong_stats_yaml_is_found(folder):
    data = WellDataModule("shear_flow_tiny", root=str(folder.parents[1]), targets=TARGETS)
    path = folder.parent / "stats.yaml"
    assert data.statistics
    right = yaml.safe_load(path.read_text())
    changed = {**right, "mean": {**right["mean"], "tracer": 100.0}}
    for text, what in (
        (yaml.safe_dump(changed), "mean of tracer is 100, but"),
        (yaml.safe_dump({**right, "std": None}), "stats.yaml has no mean and std; delete it and it is made anew"),
        ("a: [", "stats.yaml: not YAML"),
    ):
        path.write_text(text)
        for fraction in (1.0, 0.001):
            ((where, told),) = faults(verify(data, fraction))
            assert where == "statistics"
            assert what in told
    path.write_text(yaml.safe_dump({"mean": right["mean"], "std": right["std"]}))
    less = ": stats.yaml has no rms, mean_delta, std_delta, rms_delta, for which The Well's reader may ask"
    assert ("statistics", less) in said(verify(data), "note")


def test_targets_that_never_vary_and_combinations_that_are_new(folder):
    (folder / "train" / ODD).unlink()
    for path in folder.glob("*/*"):
        with h5py.File(path, "r+") as f:
            f["scalars/Schmidt"][()] = f.attrs["Schmidt"] = 0.5
            path.rename(path.with_name(path.name.replace("Schmidt_2", "Schmidt_0.5")))
    report = check(folder.parents[1])
    assert faults(report) == [("targets", ": target Schmidt is 0.5 in every file: there is nothing to estimate")]
    new = "1 of {}'s 2 combinations are not in train, such as Reynolds 400, Schmidt 0.5"
    notes = [text for c, text in said(report, "note") if c == "parameters"]
    assert notes == [f": {new.format(split)}" for split in ("valid", "test")]


def test_rest_is_a_note(folder):
    names = ("t0_fields/tracer", "t0_fields/pressure", "t1_fields/velocity")
    with h5py.File(folder / "train" / ODD, "r+") as f:
        for name in names:
            f[name][0] = f[name][0, :1]  # at rest throughout
            f[name][1, 14:] = f[name][1, 13]  # comes to rest
            f[name][2, 15:] = f[name][2, 14] * (1 + 1e-7 * (np.arange(5) % 2)).reshape(5, *[1] * (f[name].ndim - 2))
            f[name][3, :4] = f[name][3, 4]  # is at rest at first
    report = check(folder.parents[1])
    assert not faults(report)
    assert [text for c, text in said(report, "note") if c == "motion"] == [
        f": 1 of 24 trajectories are at rest throughout; most, 1, in train/{ODD}",
        f": 2 of 24 trajectories come to rest for good; most, 2, in train/{ODD}",
        f": 1 of 24 trajectories are at rest at first; most, 1, in train/{ODD}",
    ]


def test_files_that_differ_are_noted(folder):
    with h5py.File(folder / "train" / ODD, "r+") as f:
        f.create_group("additional_information")
        stored("t0_fields/pressure", lambda x: x.astype("f2"))(f)
        stored("t0_fields/tracer", lambda x: x[:, 0])(f)
        f["t0_fields/tracer"].attrs["time_varying"] = False
        f["dimensions/y"][...] = -np.cos(np.pi * (np.arange(32) + 0.5) / 32)
        f[BC].attrs["bc_type"] = "WALL"
    report = check(folder.parents[1])
    assert not faults(report)
    varying = "pressure sample time, {}, velocity sample time"
    assert {(c, text) for c, text in said(report, "note") if ODD in text} == {
        ("structure", f"train/{ODD}: /additional_information is no part of the format; nobody reads it"),
        ("structure",
         f"train/{ODD}: /t0_fields/pressure is float16: The Well's reader gives all fields the widest type"),
        ("coordinates", f"train/{ODD}: y is not uniform: steps of 0.00962 to 0.0981"),
        ("order", f"train/{ODD}: what fields vary with: {varying.format('tracer sample')}; "
                  f"in 5 of 6 files {varying.format('tracer sample time')}"),
        ("order", f"train/{ODD}: boundaries: x WALL, y PERIODIC; in 5 of 6 files x PERIODIC, y PERIODIC"),
    }  # fmt: skip
    assert ("order", ": y takes 2 different courses in 6 files") in said(report, "note")


def write_odd(path: Path, seed: int) -> None:
    """A 3-D file: a tensor, fields that do not vary with time, with the sample or with either, and odd boundaries."""
    rng = np.random.default_rng(seed)
    n, t, grid = 3, 4, (4, 6, 5)
    e = rng.normal(size=(n, t, *grid, 3, 3))
    e = e + np.swapaxes(e, -1, -2)
    e[..., 2, 2] = -e[..., 0, 0]
    fields = {
        "t0_fields/density": (rng.normal(size=(n, t, *grid)), True, True),
        "t0_fields/speed": (1 + rng.random((n, *grid)), True, False),
        "t0_fields/mask": (rng.random(grid), False, False),
        "t0_fields/drive": (rng.normal(size=(t, *grid)), False, True),
        "t1_fields/u": (rng.normal(size=(n, t, *grid, 3)), True, True),
        "t2_fields/E": (e, True, True),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as f:
        f.attrs.update(dataset_name="odd", grid_type="cartesian", n_spatial_dims=3, n_trajectories=n)
        f.attrs.update(simulation_parameters=["nu"], nu=0.5)
        for rank in range(3):
            names = [name.partition("/")[2] for name in fields if name[1] == str(rank)]
            f.create_group(f"t{rank}_fields").attrs["field_names"] = names
        for name, (data, sample, time) in fields.items():
            f.create_dataset(name, data=data.astype("f4"))
            f[name].attrs.update(sample_varying=sample, time_varying=time, dim_varying=[True] * 3)
        f.create_group("dimensions").attrs["spatial_dims"] = ["x", "y", "z"]
        times = np.arange(t) * (1 + np.arange(n)[:, None])
        for name, data in (("time", times), *((d, np.arange(k)) for d, k in zip("xyz", grid, strict=True))):
            f["dimensions"].create_dataset(name, data=data.astype("f4"))
            f["dimensions"][name].attrs.update(sample_varying=name == "time", time_varying=name == "time")
        f.create_group("scalars").attrs["field_names"] = ["nu", "beta", "gamma"]
        for name, data in (("nu", 0.5), ("beta", np.arange(n) + seed), ("gamma", np.ones((n, t)))):
            f["scalars"].create_dataset(name, data=np.float32(data))
            f["scalars"][name].attrs.update(sample_varying=name != "nu", time_varying=name == "gamma")
        x, y = np.arange(4), np.arange(6)
        bounds = {
            "x0_wall": ("wall", ["x"], x == 0), "xL_open": ("OPEN", ["x"], x == 3),
            "y_wall": ("WALL", ["y"], (y == 0) | (y == 5)), "xy_wall": ("WALL", ["x", "y"], x[:, None] > y),
        }  # fmt: skip
        for name, (kind, dims, mask) in bounds.items():
            node = f.create_group(f"boundary_conditions/{name}")
            node.attrs.update(bc_type=kind, associated_dims=dims)
            node.create_dataset("mask", data=mask)


def test_three_dimensions_and_fields_of_every_kind(tmp_path):
    for seed, split in enumerate(("train", "valid", "test")):
        write_odd(tmp_path / "odd" / "data" / split / f"odd_{split}.hdf5", seed)
    for fraction, whole in ((0.4, 3), (1.0, 9)):
        report = check(tmp_path, "odd", fraction, targets={"beta": "linear"})
        assert not faults(report)
        assert f"{whole} of 9 trajectories whole" in report.about
    notes = [text for _, text in said(report, "note")]
    for what in (
        "train/odd_train.hdf5: /boundary_conditions/xy_wall bounds x and y together, which our reader passes over",
        "train/odd_train.hdf5: the sides of x differ (WALL, OPEN); our reader keeps the last",
        "train/odd_train.hdf5: z has no boundary condition of its own; readers take it for open",
        "train/odd_train.hdf5: /dimensions/time differs from trajectory to trajectory, which our reader passes over",
        "train/odd_train.hdf5: /scalars/gamma varies in time; our reader takes its first value",
        ": redundant: E_yx = E_xy, E_zx = E_xz, E_zy = E_yz, E_zz = -E_xx",
    ):
        assert what in notes
    assert WellDataModule("odd", root=str(tmp_path), targets={"beta": "linear"}).statistics
    assert not faults(check(tmp_path, "odd", targets={"beta": "linear"}))


# --- One pass


def spied(monkeypatch) -> list[int]:
    """Note the size of everything that is read of fields."""
    seen = []

    def slabs_(*args):
        for at, piece in slabs(*args):
            seen.append(piece.nbytes)
            yield at, piece

    monkeypatch.setattr(module, "slabs", slabs_)
    return seen


@pytest.mark.parametrize("slab", [30_000, 1000])
def test_every_byte_is_read_once_in_pieces(folder, monkeypatch, slab):
    want = check(folder.parents[1]).found
    monkeypatch.setattr(module, "SLAB", slab)
    seen = spied(monkeypatch)
    assert check(folder.parents[1]).found == want
    assert max(seen) <= slab
    assert sum(seen) == 24 * 20 * 16 * 32 * 4 * 4


@pytest.mark.parametrize("slab", [1 << 20, 9000, 700])
@pytest.mark.parametrize("name", ["density", "speed", "mask", "drive", "u", "E"])
def test_a_series_is_that_of_numpy(tmp_path, monkeypatch, slab, name):
    write_odd(tmp_path / "odd.hdf5", 0)
    monkeypatch.setattr(module, "SLAB", slab)
    (field,) = [f for f in read_header(tmp_path / "odd.hdf5").fields if f.name == name]
    width = 3**field.rank
    with h5py.File(tmp_path / "odd.hdf5", "r+") as f:
        data = f[field.path]
        whole = data[()].astype(float)
        x = whole[1] if field.sample_varying else whole
        x = (x if field.time_varying else x[None]).reshape(-1, 120, width)
        series = read(data, field, 1, range(len(x)))
        if field.time_varying:
            part = read(data, field, 1, range(2, 3))
            assert part.digests == series.digests[2:3]
            np.testing.assert_allclose(part.sums, series.sums[2:3])
    assert series.cells == 120
    np.testing.assert_allclose(series.sums, x.sum(1))
    np.testing.assert_allclose(series.grams, np.einsum("tpi,tpj->tij", x, x))
    np.testing.assert_allclose(series.changes, (np.diff(x, axis=0) ** 2).sum(1))
    assert len(set(series.digests)) == len(x)
    assert not series.uniform
    assert not series.bad.any()


def test_memory_stays_flat_on_a_large_file(tmp_path, monkeypatch):
    """80 MB in two trajectories, of frames that are larger than what is read at once."""
    monkeypatch.setattr(module, "SLAB", 1 << 20)
    path = tmp_path / "large.hdf5"
    small = {"a": np.ones((2, 2, 4, 4, 4), "f4")}
    write(path, "large", small, {}, {d: np.arange(4.0) for d in "xyz"}, np.arange(2.0), {})
    with h5py.File(path, "r+") as f:
        attributes = dict(f["t0_fields/a"].attrs)
        del f["t0_fields/a"]
        data = f.create_dataset("t0_fields/a", (2, 10, 64, 128, 128), "f4")
        data.attrs.update(attributes)
        plane = np.random.default_rng(0).normal(size=(128, 128)).astype("f4")
        for row in range(2):
            for t in range(10):
                data[row, t] = plane * (1 + t + 20 * row)
        for name, size in (("x", 64), ("y", 128), ("z", 128), ("time", 10)):
            stored(f"dimensions/{name}", lambda _, n=size: np.arange(n, dtype="f4"))(f)
    header = read_header(path)
    assert header.bytes > 80e6
    tracemalloc.start()
    try:
        kept = list(module.scan("train/large.hdf5", header, (), 1.0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [t.stir for t in kept] == ["moves", "moves"]
    assert not [t for t in kept if t.faults]
    assert peak < 20e6


def test_a_fraction_is_drawn_once_and_for_all(datasets, monkeypatch):
    split = WellSplit(datasets / "shear_flow_tiny" / "data" / "train")

    def drawn(fraction: float) -> list[list[int]]:
        every = [t for h in split.headers for t in module.scan(f"train/{h.path.name}", h, (), fraction)]
        assert len(every) == 24
        return [[t.row for t in group if t.stir] for _, group in groupby(every, lambda t: t.where)]

    assert [len(rows) for rows in drawn(0.001)] == [1] * 4
    assert [len(rows) for rows in drawn(0.5)] == [3] * 4
    assert drawn(0.5) == drawn(0.5)
    assert len({tuple(rows) for rows in drawn(0.5)}) > 1
    seen = spied(monkeypatch)
    check(datasets, fraction=0.001)
    assert sum(seen) == (12 * 20 + 36 * 3) * 16 * 32 * 4 * 4


# --- Mistakes of the user's, and no false alarm


def test_mistakes_of_the_user(datasets):
    with pytest.raises(UserError, match=r"shear_flow_tin: no such dataset; .* did you mean shear_flow_tiny\?"):
        main(["data=well", "data.name=shear_flow_tin", f"data.root={datasets}"])
    for fraction in ("0", "1.5", "-0.1"):
        with pytest.raises(UserError, match=f"fraction={fraction}: must be above 0 and at most 1"):
            main([*ARGV, f"data.root={datasets}", f"fraction={fraction}"])


def test_brackets_in_a_path_are_noted(datasets, tmp_path):
    shutil.copytree(datasets / "shear_flow_tiny", tmp_path / "[a]" / "shear_flow_tiny")
    report = check(tmp_path / "[a]")
    assert not faults(report)
    assert any(c == "structure" and "brackets in" in text for c, text in said(report, "note"))


@pytest.mark.parametrize(
    ("system", "grid"),
    [
        ("shear_flow", "[16, 32]"),
        ("active_matter", "[16, 16]"),
        ("rayleigh_benard", "[32, 16]"),
        ("gray_scott", "[16, 16]"),
    ],
)
def test_simulated_sets_pass(tmp_path, system, grid):
    changes = ["system.frames=6", f"system.solver.grid={grid}", "system.trajectories={train: 2, valid: 1, test: 1}"]
    simulate(compose([f"system={system}", "preset=tiny", f"root={tmp_path}", "workers=1", *changes], base="simulate"))
    names = list(WellSplit(tmp_path / f"{system}_tiny" / "data" / "train").header.scalars)
    data = WellDataModule(f"{system}_tiny", root=str(tmp_path), targets={n: "linear" for n in names if n != "L"})
    assert not faults(verify(data))
    assert data.statistics
    assert not faults(verify(data, 0.05))
