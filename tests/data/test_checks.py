"""Each check on small inputs: what it must find, and what it must leave alone."""

import hashlib
import itertools

import h5py
import numpy as np
import pytest

from physrep.data.checks import (
    Moments,
    Series,
    Trajectory,
    channels,
    copies,
    exchanged,
    finite,
    leaks,
    look,
    mean_std,
    motion,
    moving,
    rest,
    rising,
    spelt,
    statistics,
    stir,
    structure,
)
from physrep.data.well import Field, write


def said(findings, verdict: str = "FAIL") -> list[str]:
    return [f.what for f in findings if f.verdict == verdict]


# --- One file's description

RANKS = {"c": 0, "p": 0, "u": 1, "D": 2}
REST = "follows from the rest of the file"


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> bytes:
    """A sound file: tensors, one periodic axis and one between walls."""
    path = tmp_path_factory.mktemp("files") / "a.hdf5"
    rng = np.random.default_rng(0)
    fields = {
        n: rng.normal(size=(2, 3, 4, 6, *(2,) * r)).astype("f4") for n, r in (("c", 0), ("p", 0), ("u", 1), ("D", 2))
    }
    kinds = {"x": "PERIODIC", "y": "WALL"}
    write(
        path, "am", fields, {"zeta": 2.0}, {"x": np.arange(4.0), "y": np.arange(6.0)}, np.arange(3.0), kinds, {"L": 9.0}
    )
    return path.read_bytes()


@pytest.fixture
def file(image, tmp_path):
    (tmp_path / "a.hdf5").write_bytes(image)
    with h5py.File(tmp_path / "a.hdf5", "r+", driver="core", backing_store=False) as f:
        yield f


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


def filled(node: str, index, value):
    def plant(f: h5py.File) -> None:
        f[node][index] = value

    return plant


def group(node: str, **attributes):
    def plant(f: h5py.File) -> None:
        f.create_group(node).attrs.update(attributes)

    return plant


X, Y = "boundary_conditions/x_periodic", "boundary_conditions/y_wall"
FAULTS = [
    *((attribute("/", n), [f"attribute {n} of / is missing"])
      for n in ("dataset_name", "grid_type", "n_spatial_dims", "n_trajectories")),
    *((lost(n), [f"group /{n} is missing"])
      for n in ("boundary_conditions", "scalars", "t0_fields", "t1_fields", "t2_fields")),
    (attribute("dimensions", "spatial_dims"), ["attribute spatial_dims of /dimensions is missing"]),
    (lost("dimensions/time"), ["dataset /dimensions/time is missing"]),
    (lost("dimensions/y"), ["dataset /dimensions/y is missing"]),
    (attribute("dimensions/time", "sample_varying"), ["attribute sample_varying of /dimensions/time is missing"]),
    (attribute("dimensions/x", "sample_varying"), ["attribute sample_varying of /dimensions/x is missing"]),
    (attribute("dimensions/x", "time_varying", True), ["/dimensions/x varies in time, which no reader supports"]),
    (attribute("dimensions/x", "sample_varying", True),
     ["/dimensions/x has shape (4,), but (2, n) follows from its flag"]),
    (attribute("/", "n_spatial_dims", 3), ["n_spatial_dims is 3, but spatial_dims are x, y"]),
    (attribute("/", "n_trajectories", 7),
     [f"/t{r}_fields/{n} has shape {(2, 3, 4, 6, *(2,) * r)}, but {(7, 3, 4, 6, *(2,) * r)} {REST}"
      for n, r in RANKS.items()]),
    *((attribute("t0_fields/c", n), [f"attribute {n} of /t0_fields/c is missing"])
      for n in ("sample_varying", "time_varying", "dim_varying")),
    (attribute("t0_fields", "field_names"), ["attribute field_names of /t0_fields is missing"]),
    (attribute("t2_fields/D", "dim_varying", [True, False]),
     ["/t2_fields/D has dim_varying [True, False]: every axis must be stored in full"]),
    (attribute("t2_fields/D", "dim_varying", [True] * 3),
     ["/t2_fields/D has dim_varying [True, True, True]: every axis must be stored in full"]),
    (lost("t1_fields/u"), ["dataset /t1_fields/u is listed, but missing"]),
    (stored("t0_fields/c", lambda x: x.astype("i4")), ["/t0_fields/c is <i4, not float32"]),
    (stored("t0_fields/c", lambda x: x.astype(">f4")), ["/t0_fields/c is >f4, not float32"]),
    (stored("t0_fields/c", lambda x: x[:, :2]),
     [f"/t0_fields/c has shape (2, 2, 4, 6), but (2, 3, 4, 6) {REST}"]),
    (stored("scalars/zeta", lambda x: x[None]), [f"/scalars/zeta has shape (1,), but () {REST}"]),
    (stored("scalars/L", lambda x: x * np.nan), ["/scalars/L is not finite"]),
    (attribute("scalars/zeta", "time_varying"), ["attribute time_varying of /scalars/zeta is missing"]),
    (attribute("scalars", "field_names"), ["attribute field_names of /scalars is missing"]),
    (attribute("/", "zeta", 3.0), ["attribute zeta of / is 3, but /scalars/zeta is 2"]),
    (attribute(X, "bc_type", "WALL_NOSLIP"),
     [f"bc_type of /{X} is WALL_NOSLIP: it must be one of PERIODIC, WALL, OPEN"]),
    *((attribute(X, n), [f"attribute {n} of /{X} is missing"]) for n in ("bc_type", "associated_dims")),
    (attribute(X, "associated_dims", ["z"]), [f"/{X} is a boundary of z, which is no spatial dimension"]),
    (lost(f"{X}/mask"), [f"dataset /{X}/mask is missing"]),
    *((filled(f"{b}/mask", ..., False), [f"/{b}/mask is False throughout: The Well's reader takes the axis for open"])
      for b in (X, Y)),
    (filled(f"{X}/mask", -1, False), [f"/{X}/mask is False at an end: The Well's reader takes the axis for open"]),
    (filled(f"{Y}/mask", ..., [False, True, True, False, False, False]),
     [f"/{Y}/mask is False at both ends: The Well's reader takes the axis for open"]),
    (stored(f"{Y}/mask", lambda x: x[:-1]), [f"/{Y}/mask has shape (5,), not (6,)"]),
]  # fmt: skip


@pytest.mark.parametrize(("plant", "want"), FAULTS, ids=[want[0] for _, want in FAULTS])
def test_a_fault_of_structure_is_found_and_nothing_else(file, plant, want):
    assert list(structure(file)) == []
    plant(file)
    assert said(structure(file)) == want


def test_a_scalar_with_a_fields_name(file):
    file["scalars/c"] = np.float32(1)
    file["scalars/c"].attrs.update(sample_varying=False, time_varying=False)
    file["scalars"].attrs["field_names"] = ["zeta", "L", "c"]
    assert said(structure(file)) == ["/t0_fields/c has the name of a scalar; The Well's reader mixes them up"]


NOTES = [
    (group("additional_information"), "/additional_information is no part of the format; nobody reads it"),
    (group("t0_fields/extra"), "/t0_fields/extra is not in field_names, so nobody reads it"),
    (stored("t0_fields/c", lambda x: x.astype("f8")),
     "/t0_fields/c is float64: The Well's reader gives all fields the widest type"),
    (stored("scalars/zeta", np.float64),
     "/scalars/zeta is float64: The Well's reader gives all fields the widest type"),
    (attribute("dimensions/time", "time_varying"),
     "attribute time_varying of /dimensions/time is missing; readers do without it"),
    (attribute("/", "simulation_parameters"),
     "attribute simulation_parameters of / is missing; readers do without it"),
    (attribute("/", "zeta"), "simulation_parameters lists zeta, which is missing as an attribute of /"),
    (lost(X), "x has no boundary condition of its own; readers take it for open"),
    (attribute("t0_fields", "field_names", np.array(["c", "p"], "S1")),
     "field_names of /t0_fields is fixed-width; The Well's reader takes the names for bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("plant", "want"), NOTES, ids=[want for _, want in NOTES])
def test_what_readers_can_do_without_is_a_note(file, plant, want):
    plant(file)
    assert said(structure(file), "note") == [want]
    assert said(structure(file)) == []


@pytest.mark.parametrize("kind", ["periodic", "Wall", "open"])
def test_boundaries_in_any_case_and_with_one_side_each(file, kind):
    file[X].attrs["bc_type"] = kind
    assert list(structure(file)) == []
    other = file.create_group("boundary_conditions/y0")
    other.attrs.update(bc_type=kind, associated_dims=["y"])
    other["mask"] = np.arange(6) == 0
    file[f"{Y}/mask"][0] = False
    if kind == "periodic":
        assert said(structure(file)) == ["/boundary_conditions/y0/mask is False at an end: "
                                         "The Well's reader takes the axis for open"]  # fmt: skip
        return
    notes = [] if kind == "Wall" else ["the sides of y differ (OPEN, WALL); our reader keeps the last"]
    assert [f.what for f in structure(file)] == notes


def test_the_wells_own_reader_chokes_where_a_fault_says_so(image, tmp_path):
    the_well = pytest.importorskip("the_well.data")
    path = tmp_path / "data" / "train" / "a.hdf5"
    path.parent.mkdir(parents=True)

    def sides(*plants) -> list[list[float]]:
        path.write_bytes(image)
        with h5py.File(path, "r+") as f:
            for plant in plants:
                plant(f)
        data = the_well.WellDataset(path=str(tmp_path), well_split_name="train", n_steps_input=1, n_steps_output=1)
        return data[0]["boundary_conditions"].tolist()

    assert sides() == [[2, 2], [0, 0]]
    assert sides(filled(f"{X}/mask", ..., False)) == [[1, 1], [0, 0]]
    assert sides(filled(f"{X}/mask", -1, False)) == [[2, 1], [0, 0]]
    for plant in (lost("boundary_conditions"), attribute(X, "bc_type", "WALL_NOSLIP"), lost(f"{X}/mask"),
                  attribute("dimensions/x", "sample_varying"), attribute("t0_fields/c", "dim_varying")):  # fmt: skip
        with pytest.raises(KeyError):
            sides(plant)


def test_axes_rise():
    assert list(rising("time", np.arange(200, dtype="f4") * np.float32(0.1))) == []
    assert list(rising("time", np.arange(3.0) * np.array([[1], [2]]))) == []
    assert said(rising("time", np.array([0, 1, 1, 2]))) == ["time does not rise from entry 1 to 2"]
    assert said(rising("time", np.array([2.0, 1, 0]))) == ["time does not rise from entry 0 to 1"]
    assert said(rising("time", np.array([[0, 1, 2], [0, 2, 1]]))) == ["time does not rise from entry 1 to 2"]
    assert said(rising("x", np.array([0, np.inf]))) == ["x is not finite"]
    assert said(rising("theta", np.array([3.0, 1.5, 0])), "note") == ["theta falls from 3 to 0"]
    chebyshev = -np.cos(np.pi * (np.arange(128) + 0.5) / 128)
    assert said(rising("y", chebyshev), "note") == ["y is not uniform: steps of 0.000602 to 0.0245"]
    assert list(rising("time", np.zeros(1))) == []


@pytest.mark.parametrize(
    ("stem", "scalars"),
    [
        ("shear_flow_Reynolds_1e4_Schmidt_1e-1", {"Reynolds": 1e4, "Schmidt": 0.1}),
        ("rayleigh_benard_Rayleigh_1e10_Prandtl_5e-1", {"Rayleigh": 1e10, "Prandtl": 0.5}),
        ("rayleigh_benard_Rayleigh_1.5e+06_Prandtl_10", {"Rayleigh": 1.5e6, "Prandtl": 10}),
        ("active_matter_L_10.0_zeta_1.0_alpha_-3.0", {"L": 10, "zeta": 1, "alpha": -3}),
        ("gray_scott_reaction_diffusion_maze_F_0.029_k_0.057", {"F": 0.029, "k": 0.057}),
        ("euler_multi_quadrants_openBC_gamma_1.365_Dry_air_1000", {"gamma": 1.365}),
        ("rayleigh_taylor_instability_At_0625", {"At": 0.0625}),
        ("rayleigh_taylor_instability_At_50", {"At": 0.5}),
        ("helmholtz_staircase_omega_006", {"omega": 0.06283032}),
        ("helmholtz_staircase_omega_18", {"omega": 1.88295798}),
        ("supernova_explosion_Msun_0.1_dim128_file_00", {"Msun": 0.1, "rho0": 44.5}),
        ("viscoelastic_instability_EIT", {"Re": 1000, "Wi": 50}),
        ("planetswe_IC34_s2", {}),
    ],
)
def test_names_spell_parameters(stem, scalars):
    values = {name: np.full(3, np.float32(value)) for name, value in scalars.items()}
    assert list(spelt(stem, values)) == []
    for name, value in scalars.items():
        wrong = {**values, name: np.array([values[name][0], 7 * value])}
        assert len(said(spelt(stem, wrong))) == (f"_{name}_" in stem)


# --- What a trajectory holds


def series(x: np.ndarray) -> Series:
    """The series of a field [T, cells, K]."""
    digests = [hashlib.md5(frame.tobytes()).digest() for frame in x]
    y = x.astype(float)
    grams = np.stack([frame.T @ frame for frame in y])
    uniform, bad = bool(np.ptp(x[0]) == 0), (~np.isfinite(y)).sum((1, 2))
    return Series(x.shape[1], y.sum(1), grams, (np.diff(y, axis=0) ** 2).sum(1), digests, uniform, bad)


def course(*phases: float, kind: str = "f4", seed: int = 0) -> np.ndarray:
    """A wave [T, 50, 2] at these phases."""
    x = np.arange(50) / 50
    wave = np.sin(2 * np.pi * x - np.array(phases)[:, None])
    return np.stack([wave, 3 + np.cos(wave + seed)], -1).astype(kind)


def told(**fields: np.ndarray) -> list[str]:
    each = {name: series(x) for name, x in fields.items()}
    return said(motion(4, {name: (s, moving(s, fields[name].dtype)) for name, s in each.items()}))


def test_frozen_and_looping_frames():
    assert told(u=course(*range(6))) == []
    assert told(u=course(0, 1, 2, 2, 3, 4)) == ["trajectory 4: frame 2 is frozen amid motion (1 such) in u"]
    assert told(u=course(0, 1, 1, 1, 3, 3, 4)) == ["trajectory 4: frame 1 is frozen amid motion (3 such) in u"]
    assert told(u=course(0, 1, 2, 3, 1, 2, 5)) == ["trajectory 4: frame 1 comes again as frame 4 (2 such) in u"]
    assert told(u=course(0, 1, 2, 3, 0)) == ["trajectory 4: frame 0 comes again as frame 4 (1 such) in u"]
    both = course(0, 1, 2, 2, 3, 1)
    assert told(u=both, v=both, w=course(*range(6))) == [
        "trajectory 4: frame 2 is frozen amid motion (1 such) in u, v",
        "trajectory 4: frame 1 comes again as frame 5 (1 such) in u, v",
    ]


def test_rest_is_neither_frozen_nor_a_loop():
    for phases in ([0] * 6, [0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 3, 3], [0, 0, 1, 2, 3, 3]):
        assert told(u=course(*phases)) == []
    flicker = course(0, 1, 2, 3, 3, 3, 3, 3, 3)
    flicker[5, 7, 0] = np.nextafter(flicker[5, 7, 0], np.float32(9))
    flicker[7, 7, 0] = flicker[5, 7, 0]
    assert told(u=flicker) == []
    decay = (course(0) * np.exp(-np.arange(40)[:, None, None]) + 1).astype("f4")  # comes to rest cell by cell
    assert np.diff(decay[14:], axis=0).any()
    assert told(u=decay) == []
    assert told(u=decay.astype("f2")) == []
    quiet = np.concatenate([np.zeros((1, 50, 2)), course(1, 2, 3), np.zeros((1, 50, 2)), course(4)]).astype("f4")
    assert told(u=quiet) == []  # uniform frames are alike without being a loop


def test_what_trajectories_do():
    T, F = True, False
    for moves, want in (
        ([[T, T, T], [F, F, F]], "moves"), ([[F, F, F]], "rests"), ([[T, T, F], [T, F, F]], "stops"),
        ([[F, T, T], [F, F, F]], "waits"), ([[F, T, F]], "stops"), ([[T, F, T]], "moves"), ([], "moves"),
    ):  # fmt: skip
        assert stir([np.array(m) for m in moves]) == want


def trajectory(where: str, row: int, state: str = "", start: str = "", stir: str = "moves") -> Trajectory:
    moments = {"u": Moments(1, np.zeros(1), np.zeros((1, 1)), 1, np.zeros(1))}
    return Trajectory(where, row, (state or f"{where}{row}").encode(), start.encode(), moments, stir, ())


def test_those_at_rest_are_counted():
    rows = [trajectory("train/a", i, stir="stops") for i in range(3)] + [trajectory("test/b", 0, stir="stops")]
    rows += [trajectory("test/b", 1)._replace(stir=""), trajectory("test/b", 2)]
    assert said(rest(rows), "note") == ["4 of 5 trajectories come to rest for good; most, 3, in train/a"]


def test_copies_and_leaks():
    rows = [
        trajectory("train/a", 0, "s", "p"), trajectory("train/a", 1, "", "p"), trajectory("train/a", 2, "", "q"),
        trajectory("valid/a", 0, "", "r"), trajectory("valid/a", 1, "", ""),
        trajectory("test/a", 0, "s", "p"), trajectory("test/b", 0, "", "r"), trajectory("test/b", 1, "", ""),
    ]  # fmt: skip
    assert [(f.where, f.what) for f in copies(rows)] == [("test/a", "trajectory 0 is trajectory 0 of train/a")]
    whole = [trajectory("train/a", i, str(i)) for i in range(4)] + [trajectory("test/b", i, str(i)) for i in range(4)]
    (found,) = copies(whole)
    assert found.where == "test/b"
    assert found.what == "trajectory 0 is trajectory 0 of train/a, and 3 more of it"
    bad, notes = said(leaks(rows, False)), said(leaks(rows, False), "note")
    leak = "leakage: 1 of test's 2 trajectories start from a state of {0}'s, such as trajectory 0 of {1} and 0 of {0}/a"
    assert bad == [leak.format("train", "test/a"), leak.format("valid", "test/b")]
    assert notes == ["train's 3 trajectories start from 2 distinct states"]
    assert said(leaks(rows, True)) == []
    assert said(leaks(rows, True), "note") == [*notes, *bad]


def test_values_that_are_not_finite():
    x = course(*range(6))
    assert list(finite("t0_fields/u", 3, series(x))) == []
    x[2, 4, 1], x[4, :3, 0] = np.nan, -np.inf
    with np.errstate(invalid="ignore"):
        assert said(finite("t0_fields/u", 3, series(x))) == [
            "/t0_fields/u, trajectory 3, frame 2: NaN or infinity, 4 values in all"
        ]
        assert "frame 14:" in said(finite("t0_fields/u", 3, series(x[4:5]), first=14))[0]


# --- Statistics


def moments(x: np.ndarray) -> Moments:
    """Of a field [T, cells, K]."""
    s = series(x)
    n = len(x) * s.cells
    return Moments(n, s.sums.sum(0), s.grams.sum(0), n - s.cells, s.changes.sum(0))


def test_moments_and_looks_are_those_of_numpy():
    rng = np.random.default_rng(1)
    parts = [rng.normal(2, 3, size=(t, 40, 2)) for t in (5, 9)]
    every = np.concatenate(parts).reshape(-1, 2)
    mean, std = mean_std([moments(x) for x in parts])
    np.testing.assert_allclose(mean, every.mean(0))
    np.testing.assert_allclose(std, every.std(0))
    steps = np.concatenate([np.diff(x, axis=0).reshape(-1, 2) for x in parts])
    want = np.stack([every.mean(0), np.log(every.std(0)), np.log((steps**2).mean(0) ** 0.5 / every.std(0))], -1)
    np.testing.assert_allclose(look([moments(x) for x in parts]), want)


def drawn(rng: np.random.Generator, n: int) -> list[np.ndarray]:
    """Trajectories that differ in mean and spread more than samples of one do."""
    return [rng.normal(rng.normal(), 1 + rng.random(), size=(4, 30, 1)) for _ in range(n)]


def test_statistics_within_the_error_of_a_sample():
    rng, field = np.random.default_rng(2), Field("u", 0)
    for _ in range(40):
        files = [drawn(rng, 30), [x + 4 for x in drawn(rng, 6)]]  # every trajectory weighs the same, not every file
        every = np.concatenate([x for file in files for x in file])
        known = {"mean": {"u": float(every.mean())}, "std": {"u": float(every.std())}}
        some = [moments(x) for file in files for x in file[:3]]
        weights = np.array([10] * 3 + [2] * 3)
        assert list(statistics(known, field, ["u"], some, weights, sampled=True)) == []
        whole = [moments(x) for file in files for x in file]
        assert list(statistics(known, field, ["u"], whole, np.ones(36), sampled=False)) == []
        for key in ("mean", "std"):
            off = {**known, key: {"u": known[key]["u"] + 0.03 * known["std"]["u"]}}
            (text,) = said(statistics(off, field, ["u"], whole, np.ones(36), sampled=False))
            assert text.startswith(f"stats.yaml: {key} of u is")
        far = {**known, "mean": {"u": known["mean"]["u"] + 40}}
        assert len(said(statistics(far, field, ["u"], some, weights, sampled=True))) == 1
        assert list(statistics(far, field, ["u"], some[:1], weights[:1], sampled=True)) == []  # one tells nothing


@pytest.mark.parametrize("known", [{}, {"u": "many"}, {"u": [1.0, 2.0]}, {"u": [[1.0], [2.0, 3.0]]}, {"v": 1.0}])
def test_statistics_of_another_shape(known):
    x = [moments(np.ones((2, 3, 1)))]
    found = said(statistics({"mean": {"u": 1.0}, "std": known}, Field("u", 0), ["u"], x, np.ones(1), False))
    assert found == ["stats.yaml has no mean and std of 1 numbers of u"]


def test_flat_and_redundant_channels():
    rng = np.random.default_rng(3)
    e = rng.normal(size=(5, 40, 4)).astype("f4")
    e[..., 2], e[..., 3] = e[..., 1], -e[..., 0]
    c = (1 + 0.003 * rng.normal(size=(5, 40, 1))).astype("f4")
    u = rng.normal(size=(5, 40, 2)) * [1, 1e-6]
    fields = {
        "E": (["E_xx", "E_xy", "E_yx", "E_yy"], [moments(e)]), "c": (["c"], [moments(c)]),
        "u": (["u_x", "u_y"], [moments(u)]), "p": (["p"], [moments(np.zeros((5, 40, 1)))]),
        "like": (["a", "b"], [moments(e[..., :1] * [1, 1.001])]),
    }  # fmt: skip
    flat, redundant = said(channels(fields), "note")
    assert [each.split(" (")[0].split()[-1] for each in flat.split("), ")] == ["c", "u_y", "p"]
    assert redundant == "redundant: E_yx = E_xy, E_yy = -E_xx"


def looks(rng: np.random.Generator, files: int, spread: float) -> dict[str, dict[str, np.ndarray]]:
    """Features of `files` files of three fields, whose mean and std depend on the file's parameter over decades."""
    theta = np.linspace(-1, 1, files)
    out = {}
    for i, t in enumerate(theta):
        noise = rng.normal(size=(3, 1, 3)) * 0.1
        base = {"tracer": [0.5, -1 + 0.3 * spread * t, -1], "pressure": [0, -3 + spread * t, -1.3], "heat": [9, 0, -1]}
        out[f"train/{i}"] = {name: np.array([f]) + n for (name, f), n in zip(base.items(), noise, strict=True)}
    return out


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_exchanged_fields_are_found_and_extreme_ones_left_alone(spread):
    rng = np.random.default_rng(4)
    names = ("tracer", "pressure", "heat")
    for files in (3, 6, 20):
        honest = looks(rng, files, spread)
        assert list(exchanged(honest, "fields")) == []
        for a, b in itertools.combinations(names, 2):
            spoilt = {where: dict(each) for where, each in honest.items()}
            spoilt["train/1"][a], spoilt["train/1"][b] = honest["train/1"][b], honest["train/1"][a]
            found = list(exchanged(spoilt, "fields"))
            assert [f.where for f in found] == ["train/1"], (files, a, b)
            assert found[0].what.startswith(f"fields {a} and {b} are exchanged (")
        for shift in ([5, 0, 0], [0, 4, 0], [-3, -4, 2]):  # one field far from its median, as by an instability
            for name in names:
                extreme = {where: dict(each) for where, each in honest.items()}
                extreme["train/2"][name] = extreme["train/2"][name] + np.array(shift)
                assert list(exchanged(extreme, "fields")) == []


def test_like_components_are_never_exchanged():
    rng = np.random.default_rng(5)
    for _ in range(50):
        alike = {str(i): {n: rng.normal(size=(1, 3)) * 0.3 for n in ("u_x", "u_y")} for i in range(8)}
        assert list(exchanged(alike, "components")) == []
