"""The look at a dataset: what is drawn is what the files hold, to scale and labelled."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from matplotlib.image import NonUniformImage
from PIL import Image

from physrep import show
from physrep.config import build, compose
from physrep.data.module import WellDataModule
from physrep.data.shear_flow import ShearFlow
from physrep.data.well import write
from physrep.errors import UserError
from physrep.frames import Scale, film, overview, scale
from physrep.show import distinct, label, read, spread

PAIRS = [(100, 0.5), (100, 2), (400, 0.5), (400, 2)]
LATE = 13  # of 20 frames


def tiny(datasets, **options):
    return ShearFlow("shear_flow_tiny", root=str(datasets), **options)


def of_file(datasets, pair, split="train"):
    with h5py.File(
        datasets / f"shear_flow_tiny/data/{split}/shear_flow_Reynolds_{pair[0]:g}_Schmidt_{pair[1]:g}.hdf5"
    ) as f:
        tracer, pressure, velocity = (f[n][0] for n in ("t0_fields/tracer", "t0_fields/pressure", "t1_fields/velocity"))
        return np.stack([tracer, pressure, velocity[..., 0], velocity[..., 1]])


def images(figure):
    return [axis.images[0] for axis in figure.axes if axis.images]


def texts(figure):
    return [text.get_text() for text in figure.texts]


def write_any(root, fields, coords, times=None, theta=(1.0, 2.0), boundaries=None):
    """A dataset "any" of one parameter, its files' fields scaled by it."""
    frames = next(iter(fields.values())).shape[1]
    for value in theta:
        for part in ("train", "valid", "test"):
            path = root / "any" / "data" / part / f"any_{value:g}.hdf5"
            here = {name: value * field for name, field in fields.items()}
            clock = np.arange(frames) if times is None else value * times
            write(path, "any", here, {"alpha": value}, coords, clock, boundaries or dict.fromkeys(coords, "PERIODIC"))
    return WellDataModule("any", root=str(root))


def test_a_figure_and_an_animation_are_written_and_named(datasets, tmp_path, capsys):
    show.main(["data=shear_flow_tiny", f"data.root={datasets}", "split=test", "field=pressure", f"out={tmp_path}/a/b"])
    want = [tmp_path / "a" / "b" / f"shear_flow_tiny.{suffix}" for suffix in ("png", "gif")]
    assert capsys.readouterr().out.split() == list(map(str, want))
    assert sorted(want[0].parent.iterdir()) == sorted(want)
    with Image.open(want[0]) as picture, Image.open(want[1]) as animation:
        assert (picture.format, animation.format, animation.n_frames) == ("PNG", "GIF", 20)
        assert 1000 < picture.width < 1500 and picture.height < 2 * picture.width
        dark = (np.asarray(picture.convert("L")) < 128).mean()
        assert 0.03 < dark < 0.6  # neither blank nor filled
        first, last = (np.asarray(animation.convert("L")) for _ in map(animation.seek, (0, 19)))
        assert (first != last).mean() > 0.1
    assert want[1].stat().st_size < 1.5e6


def test_rows_are_trajectories_and_columns_channels(datasets):
    figure = overview(read(tiny(datasets), "train", "pressure"))
    drawn = images(figure)
    assert len(drawn) == 4 * 4 + 4 * 6
    for row, pair in enumerate(PAIRS):
        fields = of_file(datasets, pair)
        for channel in range(4):
            np.testing.assert_array_equal(drawn[4 * row + channel].get_array(), fields[channel, LATE].T)
        for column, at in enumerate((0, 4, 8, 11, 15, 19)):
            np.testing.assert_array_equal(drawn[16 + 6 * row + column].get_array(), fields[1, at].T)
    said = texts(figure)
    assert said[0] == "shear_flow_tiny, train, t = 2.6; x 0 to 1 (periodic), y 0 to 1 (periodic)"
    assert {"tracer", "pressure", "velocity_x", "velocity_y", "pressure over time"} < set(said)
    rows = [text for text in said if text.startswith("Reynolds")]
    assert rows == [f"Reynolds = {re}\nSchmidt = {sc:g}" for re, sc in PAIRS] * 2
    assert [text for text in said if text.startswith("t = ")] == ["t = 0"] * (said.count("3.8"))
    assert {"0.8", "1.6", "2.2", "3", "3.8"} < set(said)


def test_a_channel_has_one_scale(datasets):
    figure = overview(read(tiny(datasets), "train"))
    drawn = images(figure)
    fields = np.stack([of_file(datasets, pair) for pair in PAIRS])
    for channel in range(4):
        values = fields[:, channel, LATE]
        if channel == 0:  # over time too
            values = np.append(values, fields[:, 0])
            assert {image.get_clim() for image in drawn[16:]} == {drawn[0].get_clim()}
        low, high = np.percentile(values, [1, 99])
        (ends,) = {image.get_clim() for image in drawn[channel:16:4]}
        assert ends == pytest.approx((-max(-low, high), max(-low, high)))
    bars = [axis for axis in figure.axes if not axis.images]
    assert len(bars) % 4 == 0
    assert [float(t.get_text().replace("−", "-")) for t in bars[0].get_xticklabels()] == pytest.approx(
        [drawn[0].norm.vmin, 0, drawn[0].norm.vmax], rel=0.05
    )


def test_colours_diverge_about_zero_where_both_signs_matter():
    ramp = np.linspace(-1, 3, 1001)
    assert scale(ramp) == Scale("RdBu_r", pytest.approx(-2.96), pytest.approx(2.96))
    assert scale(ramp + 1.5) == Scale("viridis", pytest.approx(0.54), pytest.approx(4.46))
    assert scale(ramp + 0.97).colours == "viridis"  # a trace of the other sign
    assert scale(np.append(ramp, [1e6, np.nan])).high < 3.1


def test_axes_are_to_scale_with_x_to_the_right_and_y_up(tmp_path):
    x, y = np.arange(8) * 0.5, np.arange(4) * 0.5 + 0.25  # 4 by 2
    field = np.zeros((1, 3, 8, 4), np.float32) + np.arange(8)[:, None] + 100 * np.arange(4)
    for figure in (overview(look := read(write_any(tmp_path, {"A": field}, {"x": x, "y": y}), "train")), film(look)[0]):
        width, height = figure.get_size_inches()
        for image in images(figure):
            box = image.axes.get_position()
            assert box.width * width / (box.height * height) == pytest.approx(2)
            assert image.axes.get_xlim() == (-0.25, 3.75) and image.axes.get_ylim() == (0, 2)
            assert image.origin == "lower" and [*image.get_extent()] == [-0.25, 3.75, 0, 2]
        assert np.diff(images(figure)[0].get_array()[0]).max() == 1  # along the picture's rows, x


def test_walls_are_thick(walled):
    figure = overview(read(tiny(walled), "valid"))
    assert texts(figure)[0].endswith("x 0 to 1 (periodic), y −0.0156 to 0.984 (walls)")
    for image in images(figure):
        widths = {side: spine.get_linewidth() for side, spine in image.axes.spines.items()}
        assert widths["left"] == widths["right"] < widths["bottom"] == widths["top"]


def test_of_three_dimensions_the_middle_slice(tmp_path):
    rng = np.random.default_rng(0)
    fields = {"A": rng.normal(size=(2, 4, 6, 5, 8)), "u": rng.normal(size=(2, 4, 6, 5, 8, 3))}
    coords = {"x": np.arange(6.0), "y": np.arange(5.0), "z": np.arange(8) / 4}
    figure = overview(read(write_any(tmp_path, fields, coords), "train"))
    assert texts(figure)[0] == "any, train, t = 2; x 0 to 6 (periodic), y 0 to 5 (periodic), slice at z = 1"
    drawn = images(figure)
    assert len(drawn) == 2 * 4 + 2 * 4  # of four frames
    want = fields["A"][0, 2, :, :, 4], *np.moveaxis(fields["u"][0, 2, :, :, 4], -1, 0)
    for row, value in enumerate((1, 2)):
        for column in range(4):
            np.testing.assert_allclose(drawn[4 * row + column].get_array(), value * want[column].T, rtol=1e-6)


def test_cells_of_several_sizes_lie_where_the_file_says(tmp_path):
    y = (1 - np.cos(np.pi * (np.arange(9) + 0.5) / 9)) / 2
    field = np.random.default_rng(0).normal(size=(1, 2, 6, 9))
    data = write_any(tmp_path, {"A": field}, {"x": np.arange(6.0), "y": y}, boundaries={"x": "PERIODIC", "y": "WALL"})
    look = read(data, "train")
    figure, turn = film(look)
    overview(look).canvas.draw()
    turn(1)
    figure.canvas.draw()
    for value, image in zip((1, 2), images(figure), strict=True):
        assert isinstance(image, NonUniformImage)
        np.testing.assert_allclose(image._Ay, y, rtol=1e-6)
        np.testing.assert_allclose(image.get_array(), value * field[0, 1].T, rtol=1e-6)


def test_the_animation_turns_over_all_frames(datasets):
    figure, turn = film(read(tiny(datasets), "valid", "velocity_y"))
    for n in (7, 0, 19):
        turn(n)
        assert texts(figure)[0] == f"velocity_y, t = {0.2 * n:.4g}"
        for pair, image in zip(PAIRS, images(figure), strict=True):
            np.testing.assert_array_equal(image.get_array(), of_file(datasets, pair, "valid")[3, n].T)
    assert len(figure.axes) == 4 + 1


def test_an_animation_that_is_too_large_is_made_smaller(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).normal(size=(1, 3, 64, 64))
    look = read(write_any(tmp_path, {"A": noise}, {"x": np.arange(64), "y": np.arange(64)}), "valid")
    large = show.animate(look)
    monkeypatch.setattr(show, "BYTES", 0.6 * len(large))
    assert len(show.animate(look)) < 0.6 * len(large)


def test_many_frames_are_thinned_and_times_that_differ_are_numbers(tmp_path):
    field = np.zeros((1, 121, 4, 4)) + np.arange(121)[None, :, None, None]
    times = np.linspace(0, 1, 121)
    look = read(write_any(tmp_path, {"A": field}, {"x": np.arange(4), "y": np.arange(4)}, times), "train")
    assert look.film.shape == (2, 60, 4, 4) and look.film[0, [0, -1], 0, 0].tolist() == [0, 120]
    assert look.times[0] == "frame 0" and look.times[-1] == "frame 120" and "frame" in look.title


def test_channels_are_those_of_the_data_or_all_that_differ(datasets, tmp_path):
    some = read(tiny(datasets, channels=["velocity", "tracer"]), "train")
    assert list(some.channels) == ["tracer", "velocity_x", "velocity_y"]
    np.testing.assert_array_equal(some.late[1, 2], of_file(datasets, PAIRS[1])[3, LATE])
    rng = np.random.default_rng(0)
    q, r = rng.normal(size=(2, 1, 3, 5, 5))
    tensor = np.stack([q, r, r, -q], -1).reshape(1, 3, 5, 5, 2, 2)
    coords = {"x": np.arange(5), "y": np.arange(5)}
    scalars = {f"s{n}": rng.normal(size=(1, 3, 5, 5)) for n in range(7)}
    assert list(read(write_any(tmp_path / "a", {"E": tensor}, coords), "train").channels) == ["E_xx", "E_xy"]
    data = write_any(tmp_path / "b", scalars | {"E": tensor}, coords)
    look = read(data, "train", "E_xy")
    assert list(look.channels) == [*scalars, "E_xy"] and look.title.endswith("; 8 of 9 channels")
    assert distinct(np.stack([q, q * 1.1, -q], 1)) == [0, 1]


def test_the_outermost_combinations_come_first():
    theta = np.array([(a, b) for a in (1, 10, 100, 1000) for b in (1, 2, 3, 9) for _ in range(3)])
    order = [tuple(theta[row]) for row in spread(theta, 6)]
    assert set(order[:4]) == {(1, 1), (1, 9), (1000, 1), (1000, 9)}
    assert set(order[4:]) <= {(10, 2), (10, 3), (100, 2), (100, 3)}
    assert all(row % 3 == 0 for row in spread(theta, 6))  # the first trajectory of each
    assert spread(theta[:9, 1:], 6) == [0, 6, 3] and spread(np.ones((5, 1)), 6) == [0]


def test_without_parameters_trajectories_are_numbered(tmp_path):
    coords = {"x": np.arange(4), "y": np.arange(4)}
    write(tmp_path / "any/data/train/a.hdf5", "any", {"A": np.ones((3, 2, 4, 4))}, {}, coords, np.arange(2), {})
    for part in ("valid", "test"):
        write(tmp_path / f"any/data/{part}/a.hdf5", "any", {"A": np.ones((1, 2, 4, 4))}, {}, coords, np.arange(2), {})
    look = read(WellDataModule("any", root=str(tmp_path)), "train")
    assert look.labels == ["trajectory = 0", "trajectory = 1", "trajectory = 2"]
    overview(look).canvas.draw()  # a constant field has a scale, too


@pytest.mark.parametrize(
    ("name", "value", "want"),
    [
        ("Reynolds", 1200, "Reynolds = 1200"), ("k", np.float32(0.05116), "k = 0.05116"), ("alpha", -3.5, "α = −3.5"),
        ("Rayleigh", 1.5e5, r"Rayleigh = $1.5 \times 10^{5}$"), ("Rayleigh", 1e10, "Rayleigh = $10^{10}$"),
        ("x", 0, "x = 0"), ("epsilon", 2e-6, r"ε = $2 \times 10^{-6}$"), ("v", -2e-6, r"v = $-2 \times 10^{-6}$"),
    ],
)  # fmt: skip
def test_values_are_written_as_in_print(name, value, want):
    assert label(name, value) == want


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("field=presure", r"^field=presure: .*shear_flow_tiny has no such channel; did you mean pressure\?$"),
        ("field=3", r"^field=3: .*no such channel; there is pressure, tracer, velocity_x, velocity_y$"),
        ("split=val", r"^split=val: no such split; did you mean valid\?$"),
        ("splitt=valid", r"^splitt: no such key; did you mean split\?$"),
        ("data.name=shear_flow_tin", r"shear_flow_tin: no such dataset; .*did you mean shear_flow_tiny\?$"),
    ],
)
def test_mistakes_are_one_line(datasets, tmp_path, argument, said):
    with pytest.raises(UserError, match=said):
        show.main(["data=shear_flow_tiny", f"data.root={datasets}", f"out={tmp_path}/out", argument])
    assert not Path(tmp_path, "out").exists()


def test_a_failure_leaves_the_old_files(datasets, tmp_path, monkeypatch):
    (tmp_path / "shear_flow_tiny.png").write_text("old")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(OSError, match="No space"):
        show.main(["data=shear_flow_tiny", f"data.root={datasets}", f"out={tmp_path}"])
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("shear_flow_tiny.png", "old")]


def test_the_usual_folder_and_data():
    cfg = compose([], "show")
    assert (cfg.out, cfg.split, cfg.field) == ("figures", "train", None)
    assert build(cfg.data).name == "shear_flow_small"
