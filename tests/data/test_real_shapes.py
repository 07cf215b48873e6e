"""The Well's published datasets as they are laid out: every shipped choice loads files of their shapes and quirks."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from omegaconf import OmegaConf

from physrep.config import build, compose
from physrep.data.well import WellSplit, read_header
from physrep.errors import UserError

XY, XYZ = ("x", "y"), ("x", "y", "z")
EULER = (XY, (512, 512), [["energy", "density", "pressure"], ["momentum"], []], {"gamma": 1.4})
BENARD = (XY, (512, 128), [["buoyancy", "pressure"], ["velocity"], []], {"Rayleigh": 1e6, "Prandtl": 0.5})
GAS = ["density", "pressure", "temperature"]
# axes, grid, fields of rank 0, 1, 2 in the order of `field_names`, scalars, boundaries
LAYOUTS = {
    "active_matter": (XY, (256, 256), [["concentration"], ["velocity"], ["D", "E"]], {"L": 10.0, "zeta": 9.0,
                      "alpha": -3.0}, {"x": "PERIODIC", "y": "PERIODIC"}),
    "shear_flow": (XY, (256, 512), [["tracer", "pressure"], ["velocity"], []], {"Reynolds": 1e4, "Schmidt": 0.1},
                   {"x": "PERIODIC", "y": "PERIODIC"}),
    "rayleigh_benard": (*BENARD, {"x": "PERIODIC", "y": "WALL"}),
    "rayleigh_benard_uniform": (*BENARD, {"x": "PERIODIC", "y": "WALL"}),
    "gray_scott": (XY, (128, 128), [["A", "B"], [], []], {"F": 0.014, "k": 0.054}, {"x": "PERIODIC", "y": "PERIODIC"}),
    "turbulent_radiative_layer": (XY, (128, 384), [["density", "pressure"], ["velocity"], []], {"tcool": 0.03},
                                  {"x": "PERIODIC", "y": "OPEN"}),
    "euler_quadrants": (*EULER, {"x": "PERIODIC", "y": "PERIODIC"}),
    "euler_quadrants_open": (*EULER, {"x": "OPEN", "y": "OPEN"}),
    "helmholtz_staircase": (XY, (1024, 256), [["pressure_re", "pressure_im", "mask"], [], []], {"omega": 0.0628},
                            {"x": "OPEN", "y": "OPEN", "xy": "WALL"}),
    "turbulence_gravity_cooling": (XYZ, (64, 64, 64), [GAS, ["velocity"], []], {"rho0": 44.5, "Z": 0.0, "T0": 10.0},
                                   {"x": "OPEN", "y": "OPEN", "z": "OPEN"}),
    "mhd": (XYZ, (64, 64, 64), [["density"], ["magnetic_field", "velocity"], []], {"Ma": 0.7, "Ms": 2.0},
            {"x": "PERIODIC", "y": "PERIODIC", "z": "PERIODIC"}),
    "turbulent_radiative_layer_3d": (XYZ, (128, 128, 256), [["density", "pressure"], ["velocity"], []], {"tcool": 0.03},
                                     {"x": "PERIODIC", "y": "PERIODIC", "z": "OPEN"}),
    "rayleigh_taylor": (XYZ, (128, 128, 128), [["density"], ["velocity"], []], {"At": 0.25},
                        {"x": "PERIODIC", "y": "PERIODIC", "z": "WALL"}),
}  # fmt: skip
FRAMES = 2
DRAWN = {"_tiny", "_small"}  # suffixes of the simulated sets, whose files are not The Well's
SHIPPED = sorted(
    p.stem for p in Path("conf/data").glob("*.yaml") if p.stem != "well" and not p.stem.endswith(tuple(DRAWN))
)


def publish(folder: Path, dataset: str, layout, n: int = 1, frames: int = FRAMES, time_of_each: bool = False) -> Path:
    """Write one file as The Well's generators do, by h5py alone, and link it into the three splits."""
    dims, shape, ranks, scalars, boundaries = layout
    path = folder / "data" / "train" / f"{dataset}.hdf5"
    path.parent.mkdir(parents=True)
    flags = {"sample_varying": False, "time_varying": False}
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as f:
        f.attrs.update(scalars)
        f.attrs.update(dataset_name=dataset, grid_type="cartesian", n_spatial_dims=len(dims), n_trajectories=n,
                       simulation_parameters=list(scalars))  # fmt: skip
        g = f.create_group("dimensions")
        g.attrs["spatial_dims"] = list(dims)
        time = np.arange(frames, dtype="f8") * 0.25
        g.create_dataset("time", data=np.tile(time, (n, 1)) if time_of_each else time)
        g["time"].attrs.update(sample_varying=time_of_each)  # time_varying is missing in some published files
        for dim, size in zip(dims, shape, strict=True):
            points = (1 - np.cos(np.pi * (np.arange(size) + 0.5) / size)) / 2  # Chebyshev's
            g.create_dataset(dim, data=points.astype("f4")).attrs.update(flags)
        for axes, kind in boundaries.items():
            g = f.create_group(f"boundary_conditions/{axes}_{kind.lower()}")
            g.attrs.update(flags | {"bc_type": kind, "associated_dims": list(axes)})
            sizes = [shape[dims.index(d)] for d in axes]
            g["mask"] = np.ones(sizes, bool)
        g = f.create_group("scalars")
        g.attrs["field_names"] = list(scalars)
        for name in sorted(scalars):
            g.create_dataset(name, data=np.float32(scalars[name])).attrs.update(flags)
        for rank, names in enumerate(ranks):
            g = f.create_group(f"t{rank}_fields")
            g.attrs["field_names"] = np.array(names, dtype=h5py.string_dtype())
            for name in sorted(names):  # keys in another order than field_names
                head = () if name == "mask" else (n, frames)
                values = rng.standard_normal((*head, *shape, *(len(dims),) * rank), dtype="f4")
                node = g.create_dataset(name, data=values)
                node.attrs.update(
                    sample_varying=name != "mask", time_varying=name != "mask", dim_varying=[True] * len(dims)
                )
    each = {name: np.zeros((len(dims),) * r).tolist() for r, names in enumerate(ranks) for name in names}
    ones = {name: np.ones((len(dims),) * r).tolist() for r, names in enumerate(ranks) for name in names}
    OmegaConf.save({"mean": each, "std": ones, "rms": ones}, folder / "stats.yaml")
    for split in ("valid", "test"):
        (folder / "data" / split).mkdir()
        (folder / "data" / split / path.name).hardlink_to(path)
    return path


def test_every_published_dataset_has_a_layout_here():
    assert sorted(LAYOUTS) == SHIPPED


@pytest.mark.parametrize("choice", SHIPPED)
def test_a_published_dataset_loads(choice, tmp_path):
    node = compose([f"data={choice}", "data.frames=2", "data.batch_size=1", f"data.root={tmp_path}"]).data
    data = build(node, seed=0)
    layout = LAYOUTS[choice]
    dims, shape, ranks, scalars, boundaries = layout
    path = publish(tmp_path / data.name, data.name, layout)
    data.setup("fit")
    batch = data.prepare_batch(next(iter(data.val_dataloader())), augment=False)
    widths = [len(dims) ** rank * len(names) for rank, names in enumerate(ranks)]
    assert list(batch["clip"].shape) == [1, sum(widths), 2, *(data.size or data.grid())]
    assert len(data.dims) == 2
    assert set(data.scales) <= set(scalars)
    assert batch["theta"].shape == (1, len(data.scales))
    assert data.theta("test")[0].tolist() == pytest.approx(
        [np.log10(scalars[k]) if s == "log10" else scalars[k] for k, s in data.scales.items()], rel=1e-6
    )
    assert data.periodic == [d for d in dims if boundaries[d] == "PERIODIC"]
    assert set(data.mirrors) <= set(dims)
    assert set(data.redundant) < set(data.channels)
    assert set(data.start) <= {n for names in ranks for n in names}

    # The channels are those of `field_names`, whatever the order of the keys, cut where the choice says.
    first = data.splits["train"].read(0, 1, 1, crop=data.crop)[0, 0].squeeze()
    cut = tuple(slice(*data.crop.get(d, (0, n))) for d, n in zip(dims, shape, strict=True))
    with h5py.File(path) as f:
        np.testing.assert_array_equal(first, f[f"t0_fields/{ranks[0][0]}"][0, 1][cut].squeeze())


@pytest.mark.parametrize("choice", ["active_matter", "shear_flow", "rayleigh_benard"])
def test_the_published_scales_are_a_choice(choice, tmp_path):
    data = build(compose([f"data={choice}", "data.targets=paper"]).data, seed=0)
    scales = {
        "active_matter": ["linear", "linear"],
        "shear_flow": ["log10", "linear"],
        "rayleigh_benard": ["log10", "linear"],
    }
    assert list(data.scales.values()) == scales[choice]
    with pytest.raises(UserError, match=r"data\.targets=paper: .* give scales by name"):
        build(compose(["data=mhd", "data.targets=paper"]).data, seed=0)


def test_the_paper_windows_its_datasets_like_this():
    for choice, crop, step in (("active_matter", {}, 1), ("shear_flow", {"y": [0, 256]}, 4),
                               ("rayleigh_benard", {"x": [192, 320]}, 4)):  # fmt: skip
        data = build(compose([f"data={choice}"]).data, seed=0)
        assert (data.crop, data.step, data.size, data.frames, data.batch_size) == (crop, step, [224, 224], 16, 8)


def test_a_time_axis_for_each_sample(tmp_path):
    layout = (XY, (8, 6), [["pressure", "c_zz"], ["velocity"], ["C"]], {"Re": 1000.0, "Wi": 50.0},
              {"x": "PERIODIC", "y": "WALL"})  # fmt: skip
    publish(tmp_path / "v", "viscoelastic_instability", layout, n=3, frames=7, time_of_each=True)
    split = WellSplit(tmp_path / "v" / "data" / "train")
    assert (split.header.frames, split.trajectories, len(split.header.channels)) == (7, 3, 8)
    assert split.read(2, 3, 4).shape == (8, 4, 8, 6)


def test_no_parameters_at_all(tmp_path):
    layout = (XY, (8, 6), [["height"], ["velocity"], []], {}, {"x": "OPEN", "y": "PERIODIC"})
    publish(tmp_path / "planetswe", "planetswe", layout)
    data = build(compose(["data=well", "data.name=planetswe", f"data.root={tmp_path}", "data.frames=2",
                          "data.batch_size=1"]).data, seed=0)  # fmt: skip
    data.setup("fit")
    assert data.prepare_batch(next(iter(data.val_dataloader())), augment=False)["theta"].shape == (1, 0)


@pytest.mark.parametrize("kept", [True, False], ids=["length one", "dropped"])
def test_an_axis_that_a_field_does_not_vary_along_is_refused_with_the_reason(tmp_path, kept):
    layout = (XY, (8, 6), [["a"], [], []], {"nu": 1.0}, {"x": "PERIODIC", "y": "PERIODIC"})
    path = publish(tmp_path / "d", "d", layout)
    with h5py.File(path, "r+") as f:
        del f["t0_fields/a"]
        node = f["t0_fields"].create_dataset("a", data=np.zeros((1, FRAMES, 8, 1) if kept else (1, FRAMES, 8), "f4"))
        node.attrs.update(sample_varying=True, time_varying=True, dim_varying=[True, False])
    with pytest.raises(UserError, match=r"/t0_fields/a has shape .* but \(1, 2, 8, 6\) follows"):
        read_header(path)
