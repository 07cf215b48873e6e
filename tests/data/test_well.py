"""The format: our reader and writer against h5py by hand and against The Well's own reader."""

import os
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from physrep.data.starts import starts
from physrep.data.well import WellSplit, read_header, write
from physrep.errors import UserError


def first_file(root: Path, split: str = "train") -> Path:
    return sorted((root / "shear_flow_tiny" / "data" / split).glob("*.hdf5"))[0]


def test_channels_follow_field_names(datasets):
    header = read_header(first_file(datasets))
    assert header.channels == ["tracer", "pressure", "velocity_x", "velocity_y"]
    assert list(header.scalars) == ["Reynolds", "Schmidt"]
    assert header.boundaries == {"x": "PERIODIC", "y": "PERIODIC"}


def test_a_header_is_read_again_when_its_file_has_changed(own_datasets):
    path = first_file(own_datasets)
    before = read_header(path)
    assert read_header(path) is before
    with h5py.File(path, "r+") as file:
        file["scalars/Reynolds"][...] = 7.0
    assert read_header(path).scalars["Reynolds"].tolist() == [7.0] * before.trajectories
    other = own_datasets / "other.hdf5"
    shutil.copy2(path, other)
    with h5py.File(other, "r+") as file:
        file["scalars/Reynolds"][...] = 8.0
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)
    assert read_header(path).scalars["Reynolds"][0] == 8.0


def test_states_at_rest_are_taken_to_differ(own_datasets):
    split = WellSplit(own_datasets / "shear_flow_tiny" / "data" / "test")
    assert len(set(starts(split))) == 12
    for header in split.headers:
        with h5py.File(header.path, "r+") as file:
            for name in ("t0_fields/tracer", "t0_fields/pressure", "t1_fields/velocity"):
                file[name][:, 0] = 0.5
    assert len(set(starts(split))) == 12


def test_read_equals_slicing_by_hand(datasets):
    split = WellSplit(datasets / "shear_flow_tiny" / "data" / "train")
    assert split.trajectories == 24
    got = split.read(13, 3, 4, stride=2, crop={"y": [5, 20]})
    with h5py.File(split.headers[2].path) as f:
        want = np.stack(
            [f[f"t0_fields/{n}"][1, 3:10:2, :, 5:20] for n in ("tracer", "pressure")]
            + [f["t1_fields/velocity"][1, 3:10:2, :, 5:20, i] for i in (0, 1)]
        )
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("crop", [{"y": (28, 40)}, {"x": (10, 26), "y": (30, 62)}, {"x": (16, 20)}, {"y": (32, 64)}])
def test_a_crop_wraps_around(datasets, crop):
    split = WellSplit(datasets / "shear_flow_tiny" / "data" / "train")
    whole = split.read(5, 2, 3)
    index = {d: np.arange(*crop.get(d, (0, n))) % n for d, n in zip("xy", split.header.shape, strict=True)}
    want = whole[:, :, index["x"]][..., index["y"]]
    np.testing.assert_array_equal(split.read(5, 2, 3, crop=crop), want)


def test_theta_and_windows(datasets):
    split = WellSplit(datasets / "shear_flow_tiny" / "data" / "valid")
    theta = split.theta(["Schmidt", "Reynolds"])
    assert theta.shape == (12, 2)
    assert theta[0].tolist() == [0.5, 100.0]
    assert theta[-1].tolist() == [2.0, 400.0]
    windows = split.windows(span=8, step=5)
    assert windows.tolist() == [[i, t] for i in range(12) for t in (0, 5, 10)]


def test_the_wells_own_reader_agrees(datasets):
    the_well = pytest.importorskip("the_well.data")
    root = datasets / "shear_flow_tiny"
    theirs = the_well.WellDataset(path=str(root), well_split_name="test", n_steps_input=5, n_steps_output=1)
    ours = WellSplit(root / "data" / "test")
    names = [n for group in theirs.metadata.field_names.values() for n in group]
    assert names == ours.header.channels
    windows = ours.windows(span=6, step=1)
    assert len(theirs) == len(windows)
    for i in (0, 17, len(windows) - 1):
        item = theirs[i]
        mine = torch.from_numpy(ours.read(*windows[i].tolist(), 6))
        both = torch.cat([item["input_fields"], item["output_fields"]])
        assert torch.equal(both.permute(3, 0, 1, 2), mine)
        scalars = dict(zip(theirs.metadata.constant_scalar_names, item["constant_scalars"].tolist(), strict=True))
        assert [scalars[n] for n in ("Reynolds", "Schmidt")] == ours.theta(["Reynolds", "Schmidt"])[
            windows[i][0]
        ].tolist()
        assert (item["boundary_conditions"] == 2).all()


def write_by_hand(path: Path, n: int = 2, t: int = 5, h: int = 4, w: int = 6) -> dict[str, np.ndarray]:
    """Groups and names in another order than `field_names`, a tensor, a constant field, sample-varying scalars."""
    rng = np.random.default_rng(0)
    fields = {
        "t2_fields/Q": rng.normal(size=(n, t, h, w, 2, 2)),
        "t1_fields/u": rng.normal(size=(n, t, h, w, 2)),
        "t0_fields/a": rng.normal(size=(n, t, h, w)),
        "t0_fields/z": rng.normal(size=(n, t, h, w)),
        "t0_fields/mask": rng.normal(size=(h, w)),
    }
    fields = {k: v.astype("f4") for k, v in fields.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as f:
        f.attrs.update(dataset_name="by_hand", grid_type="cartesian", n_spatial_dims=2, n_trajectories=n)
        for g in ("t2_fields", "scalars", "t1_fields", "dimensions", "t0_fields"):
            f.create_group(g)
        f["t0_fields"].attrs["field_names"] = ["z", "mask", "a"]
        f["t1_fields"].attrs["field_names"] = ["u"]
        f["t2_fields"].attrs["field_names"] = ["Q"]
        for k, v in fields.items():
            varying = k != "t0_fields/mask"
            f.create_dataset(k, data=v, chunks=None if varying else v.shape, compression=None if varying else "gzip")
            f[k].attrs.update(sample_varying=varying, time_varying=varying, dim_varying=[True, True])
        f["dimensions"].attrs["spatial_dims"] = ["x", "y"]
        for name, size in (("time", t), ("y", w), ("x", h)):
            f["dimensions"].create_dataset(name, data=np.arange(size, dtype="f4"))
            f["dimensions"][name].attrs["sample_varying"] = False
        f["scalars"].attrs["field_names"] = ["nu", "beta", "alpha"]
        for name, value in (("alpha", np.float32(3)), ("beta", np.arange(n, dtype="f4")), ("nu", np.full(t, 7.0))):
            f["scalars"].create_dataset(name, data=value)
            f["scalars"][name].attrs.update(sample_varying=name == "beta", time_varying=name == "nu")
    return fields


def test_file_written_by_hand_in_another_order(tmp_path):
    fields = write_by_hand(tmp_path / "data" / "train" / "a.hdf5")
    split = WellSplit(tmp_path / "data" / "train")
    assert split.header.channels == ["z", "mask", "a", "u_x", "u_y", "Q_xx", "Q_xy", "Q_yx", "Q_yy"]
    assert split.theta(["alpha", "beta", "nu"]).tolist() == [[3, 0, 7], [3, 1, 7]]
    got = split.read(1, 2, 3)
    np.testing.assert_array_equal(got[0], fields["t0_fields/z"][1, 2:5])
    np.testing.assert_array_equal(got[1], np.broadcast_to(fields["t0_fields/mask"], (3, 4, 6)))
    np.testing.assert_array_equal(got[2], fields["t0_fields/a"][1, 2:5])
    np.testing.assert_array_equal(got[4], fields["t1_fields/u"][1, 2:5, ..., 1])
    np.testing.assert_array_equal(got[6], fields["t2_fields/Q"][1, 2:5, ..., 0, 1])


def test_tensors_and_constants_round_trip(tmp_path):
    rng = np.random.default_rng(1)
    fields = {"D": rng.normal(size=(2, 3, 4, 5, 2, 2)).astype("f2"), "c": rng.normal(size=(2, 3, 4, 5)).astype("f2")}
    coords = {"x": np.arange(4.0), "y": np.arange(5.0)}
    kinds = {"x": "PERIODIC", "y": "WALL"}
    write(tmp_path / "a.hdf5", "am", fields, {"zeta": 2.0, "alpha": -1.0}, coords, np.arange(3.0), kinds, {"L": 10.0})
    split = WellSplit(tmp_path)
    assert split.header.channels == ["c", "D_xx", "D_xy", "D_yx", "D_yy"]
    assert list(split.header.scalars) == ["L", "zeta", "alpha"]
    assert split.header.boundaries == kinds
    np.testing.assert_array_equal(split.read(1, 0, 3)[2], fields["D"][1, ..., 0, 1].astype("f4"))
    assert list(tmp_path.iterdir()) == [tmp_path / "a.hdf5"]


def test_a_failed_write_leaves_nothing(tmp_path):
    bad = {"c": np.full((1, 2, 3, 4), "no number")}
    with pytest.raises(ValueError, match="could not convert"):
        write(tmp_path / "a.hdf5", "x", bad, {}, {"x": np.arange(3.0), "y": np.arange(4.0)}, np.arange(2.0), {})
    assert list(tmp_path.iterdir()) == []


def test_handles_are_not_pickled(datasets):
    split = WellSplit(datasets / "shear_flow_tiny" / "data" / "train")
    a = split.read(0, 0, 2)
    assert split._handles
    other = pickle.loads(pickle.dumps(split))
    assert not other._handles
    np.testing.assert_array_equal(other.read(0, 0, 2), a)


def spoil(path: Path, what: str) -> None:
    if what == "truncated":
        path.write_bytes(path.read_bytes()[:-5000])
        return
    if what == "garbage":
        path.write_bytes(b"not hdf5 at all")
        return
    with h5py.File(path, "r+") as f:
        if what == "no scalars":
            del f["scalars"]
        elif what == "scalar order":
            f["scalars"].attrs["field_names"] = ["Schmidt", "Reynolds"]
        elif what == "field order":
            f["t0_fields"].attrs["field_names"] = ["pressure", "tracer"]
        elif what == "no flag":
            del f["t0_fields/tracer"].attrs["time_varying"]
        elif what == "lost field":
            del f["t1_fields/velocity"]
        elif what == "too many trajectories":
            f.attrs["n_trajectories"] = 99
        elif what == "no frames":
            del f["dimensions/time"]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("truncated", "truncated"),
        ("garbage", "not a readable HDF5 file"),
        ("no scalars", "group /scalars is missing"),
        ("scalar order", "its scalars ['Schmidt', 'Reynolds'] disagree"),
        ("field order", "its fields [('pressure', 0), ('tracer', 0), ('velocity', 1)] disagree"),
        ("no flag", "attribute time_varying of /t0_fields/tracer is missing"),
        ("lost field", "dataset /t1_fields/velocity is missing"),
        ("too many trajectories", "/t0_fields/tracer has shape"),
        ("no frames", "dataset /dimensions/time is missing"),
    ],
)
def test_a_bad_file_is_named(own_datasets, what, said):
    path = sorted((own_datasets / "shear_flow_tiny" / "data" / "train").glob("*"))[-1]
    spoil(path, what)
    with pytest.raises(UserError) as error:
        WellSplit(path.parent)
    assert str(path) in str(error.value)
    assert said in str(error.value)


def test_another_grid_is_refused(own_datasets):
    folder = own_datasets / "shear_flow_tiny" / "data" / "train"
    fields = {"tracer": np.zeros((1, 20, 8, 8), "f4"), "pressure": np.zeros((1, 20, 8, 8), "f4")}
    fields["velocity"] = np.zeros((1, 20, 8, 8, 2), "f4")
    coords = {"x": np.arange(8.0), "y": np.arange(8.0)}
    write(folder / "zz.hdf5", "shear_flow", fields, {"Reynolds": 1.0, "Schmidt": 1.0}, coords, np.arange(20.0), {})
    with pytest.raises(UserError, match=r"zz\.hdf5: its grid .* disagree"):
        WellSplit(folder)


def test_empty_missing_and_short(own_datasets, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        WellSplit(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no \.hdf5 file"):
        WellSplit(tmp_path / "empty")
    split = WellSplit(own_datasets / "shear_flow_tiny" / "data" / "train")
    with pytest.raises(UserError, match="has 20 frames, a window needs 21"):
        split.windows(span=21, step=1)
    with pytest.raises(UserError, match="holds no 'Reynold', .* did you mean Reynolds"):
        split.theta(["Reynold"])
