"""Mirror images and exchanged axes are solutions again, checked on the equations; channels can be left out."""

import numpy as np
import pytest
import torch

from physrep.data import transforms
from physrep.data.active_matter import ActiveMatter
from physrep.data.rayleigh_benard import RayleighBenard
from physrep.data.shear_flow import ShearFlow
from physrep.data.well import write
from physrep.errors import UserError
from physrep.simulate import active_matter, rayleigh_benard, shear_flow


def one_draw(bits):
    """A generator stand-in is no option: find a seed whose first uniform numbers fall on the sides of 0.5 asked for."""
    for seed in range(1000):
        generator = torch.Generator().manual_seed(seed)
        if [bool(torch.rand(1, generator=generator) < 0.5) for _ in bits] == list(bits):
            return torch.Generator().manual_seed(seed)
    raise AssertionError


def clip_of(fields):
    """Fields [B, T, X, Y, ...] of a solver as a clip [B, C, T, X, Y], in their order."""
    return torch.cat([v.flatten(4).movedim(-1, 1) if v.ndim > 4 else v[:, None] for v in fields.values()], 1)


def module_of(kind, tmp_path, fields, coords, boundaries, **options):
    """A data module over one trajectory of a solver's fields, for its table of signs."""
    for split in ("train", "valid", "test"):
        path = tmp_path / "set" / "data" / split / "a.hdf5"
        arrays = {k: v.numpy() for k, v in fields.items()}
        grid = {k: v.numpy() for k, v in coords.items()}
        write(path, "set", arrays, dict.fromkeys(kind.targets, 1.0), grid, np.arange(4.0), boundaries)
    return kind("set", root=str(tmp_path), frames=2, batch_size=1, **options)


def image(data, clip, mirrored, exchanged):
    """The clip mirrored along the axes asked for, then exchanged, by the module's own table."""
    out = transforms.mirror(clip, data._signs, one_draw(mirrored))
    return transforms.transpose(out, data._exchange, one_draw([True])) if exchanged else out


@pytest.mark.parametrize("mirrored", [(True, False), (False, True)])
@pytest.mark.parametrize("exchanged", [False, True])
def test_active_matter(tmp_path, mirrored, exchanged):
    """The solver, started from the image of a state, arrives at the image of the state's future."""
    solver = active_matter.ActiveMatter((16, 16), length=5.0, dtype=torch.float64)
    theta = {"alpha": torch.tensor([-3.0]), "zeta": torch.tensor([2.0])}
    state = solver.initial(torch.Generator().manual_seed(0), order=0.4)[None]
    fields = solver.simulate(theta, state, 4, 0.25)
    data = module_of(ActiveMatter, tmp_path, fields, solver.coords(), solver.boundaries)
    clip = clip_of(fields)
    want = image(data, clip, mirrored, exchanged)
    names = data.channels
    start = dict(zip(names, want[:, :, 0].unbind(1), strict=True))
    q, r, c = start["D_xx"] - start["D_yy"], 2 * start["D_xy"], start["concentration"]
    got = clip_of(solver.simulate(theta, torch.stack([q, r, c], 1), 4, 0.25))
    torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9)
    assert (want - clip).abs().max() > 0.1


@pytest.mark.parametrize("mirrored", [(True, False), (False, True)])
@pytest.mark.parametrize("exchanged", [False, True])
def test_shear_flow(tmp_path, mirrored, exchanged):
    solver = shear_flow.ShearFlow((24, 24), length=(1.0, 1.0), dtype=torch.float64)
    theta = {"Reynolds": torch.tensor([100.0]), "Schmidt": torch.tensor([0.5])}
    state = solver.initial(torch.Generator().manual_seed(0))[None]
    fields = solver.simulate(theta, state, 4, 0.2)
    data = module_of(ShearFlow, tmp_path, fields, solver.coords(), solver.boundaries)
    want = image(data, clip_of(fields), mirrored, exchanged)
    tracer, _, u, v = want[:, :, 0].unbind(1)
    got = clip_of(solver.simulate(theta, torch.stack([u, v, tracer], 1), 4, 0.2))
    torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9)


def test_convection_is_mirrored_along_the_plates_alone(tmp_path):
    solver = rayleigh_benard.RayleighBenard((32, 16), dtype=torch.float64)
    theta = {"Rayleigh": torch.tensor([2e4]), "Prandtl": torch.tensor([1.0])}
    state = solver.initial(torch.Generator().manual_seed(0))[None]
    fields = solver.simulate(theta, state, 4, 1.0)
    data = module_of(RayleighBenard, tmp_path, fields, solver.coords(), solver.boundaries)
    assert (data._signs[1], data._exchange) == ([], [])
    want = image(data, clip_of(fields), (True, True), False)
    got = clip_of(solver.simulate(theta, state.flip(1), 4, 1.0))
    torch.testing.assert_close(got, want, atol=1e-8, rtol=1e-8)


def test_training_alone_is_changed_and_each_draw_has_its_own(datasets):
    same_data = {"root": str(datasets), "frames": 4, "batch_size": 8, "cut": {"y": 16}}
    plain, changed = (ShearFlow("shear_flow_tiny", symmetries=s, **same_data) for s in (False, True))
    for data in (plain, changed):
        data.setup("fit")
    raw = next(iter(changed.train_dataloader()))
    one, other = (data.prepare_batch(raw, augment=True)["clip"] for data in (plain, changed))
    same = [bool((a == b).all()) for a, b in zip(one, other, strict=True)]
    assert not all(same)
    torch.testing.assert_close(changed.prepare_batch(raw, augment=True)["clip"], other)
    torch.testing.assert_close(changed.prepare_batch(raw, augment=False)["clip"], one)


@pytest.mark.parametrize("options", [{"symmetries": True}, {"dropout": 0.5}])
def test_the_clips_of_a_pair_are_changed_apart(options, datasets):
    same_data = {"root": str(datasets), "frames": 4, "batch_size": 16, "cut": {"y": 16}}
    plain, changed = (ShearFlow("shear_flow_tiny", **same_data, **more) for more in ({}, options))
    for data in (plain, changed):
        data.clips = "pair"
        data.setup("fit")
    raw = next(iter(changed.train_dataloader()))
    one, other = (data.prepare_batch(raw, augment=True)["clip"] for data in (plain, changed))
    assert one.shape == other.shape
    same = torch.stack([(one == other)[:, :, half].flatten(1).all(1) for half in (slice(4), slice(4, 8))])
    assert (same[0] != same[1]).any() if options.get("symmetries") else not same.all()
    dropped = torch.stack([(other == 0)[:, :, half].flatten(2).all(2) for half in (slice(4), slice(4, 8))])
    assert (dropped[0] != dropped[1]).any() == ("dropout" in options)
    torch.testing.assert_close(transforms.together(transforms.apart(other)), other)


def test_channels_can_be_left_out(datasets):
    every = ShearFlow("shear_flow_tiny", root=str(datasets), frames=4, batch_size=2)
    some = ShearFlow("shear_flow_tiny", root=str(datasets), frames=4, batch_size=2, channels=["velocity_y", "tracer"])
    field = ShearFlow("shear_flow_tiny", root=str(datasets), frames=4, batch_size=2, channels=["velocity"])
    assert some.channels == ["tracer", "velocity_y"]
    assert field.channels == ["velocity_x", "velocity_y"]
    clips = []
    for data in (every, some):
        data.setup("fit")
        clips.append(data.prepare_batch(next(iter(data.val_dataloader())), augment=False)["clip"])
    torch.testing.assert_close(clips[0][:, [0, 3]], clips[1])
    assert some.meta()["channels"] == ["tracer", "velocity_y"]
    assert len(some.meta()["mean"]) == 2
    assert field._exchange == []  # 16 x 32 cells are not square
    with pytest.raises(UserError, match=r"data\.channels: .* has no 'velocityx'; did you mean velocity_x"):
        _ = ShearFlow("shear_flow_tiny", root=str(datasets), channels=["velocityx"]).channels


def test_independent_channels_hold_the_others(tmp_path):
    """What `channels=independent` leaves out of active matter follows from what it keeps."""
    solver = active_matter.ActiveMatter((16, 16), dtype=torch.float64)
    theta = {"alpha": torch.tensor([-4.0]), "zeta": torch.tensor([3.0])}
    fields = solver.simulate(theta, solver.initial(torch.Generator().manual_seed(1))[None], 4, 1.0)
    data = module_of(ActiveMatter, tmp_path, fields, solver.coords(), solver.boundaries, channels="independent")
    assert data.channels == ["velocity_x", "velocity_y", "D_xx", "D_xy", "E_xx", "E_xy"]
    every = dict(zip(data.header.channels, clip_of(fields)[0], strict=True))
    torch.testing.assert_close(every["D_yx"], every["D_xy"])
    torch.testing.assert_close(every["E_yx"], every["E_xy"])
    torch.testing.assert_close(every["E_yy"], -every["E_xx"])
    torch.testing.assert_close(every["D_yy"], every["concentration"] - every["D_xx"])
    assert every["concentration"].std() < 0.02


def test_dropped_channels_are_flat_in_training_alone(datasets):
    data = ShearFlow("shear_flow_tiny", root=str(datasets), frames=4, batch_size=16, dropout=0.4)
    data.setup("fit")
    raw = next(iter(data.train_dataloader()))
    clip = data.prepare_batch(raw, augment=True)["clip"]
    dropped = (clip == 0).flatten(2).all(2)
    assert 0.15 < dropped.float().mean() < 0.65
    kept = ~dropped
    torch.testing.assert_close(clip[kept], data.prepare_batch(raw, augment=False)["clip"][kept])
    assert not (data.prepare_batch(raw, augment=False)["clip"] == 0).flatten(2).all(2).any()
    with pytest.raises(UserError, match=r"data\.dropout=1: is a share"):
        ShearFlow("shear_flow_tiny", dropout=1)


def test_symmetries_act_before_channels_are_left_out_and_before_the_resize(tmp_path):
    """E_xx takes -E_xx's place and D_xx that of D_yy, which is not kept; a square `size` makes no square clip."""
    solver = active_matter.ActiveMatter((16, 16), dtype=torch.float64)
    theta = {"alpha": torch.tensor([-4.0]), "zeta": torch.tensor([3.0])}
    fields = solver.simulate(theta, solver.initial(torch.Generator().manual_seed(1))[None], 4, 1.0)
    some = module_of(ActiveMatter, tmp_path, fields, solver.coords(), solver.boundaries, channels="independent",
                     symmetries=True)  # fmt: skip
    some.setup("fit")
    raw = next(iter(some.train_dataloader()))
    assert raw["clip"].shape[1] == 11
    assert some.prepare_batch(raw, augment=True)["clip"].shape[1] == 6
    assert next(iter(some.val_dataloader()))["clip"].shape[1] == 6
    assert sorted(some._exchange) == list(range(11))
    cut = module_of(ActiveMatter, tmp_path / "cut", fields, solver.coords(), solver.boundaries, symmetries=True,
                    crop={"y": [0, 8]}, size=[16, 16])  # fmt: skip
    cut.setup("fit")
    assert cut._exchange == []
    assert cut.prepare_batch(next(iter(cut.train_dataloader())), augment=True)["clip"].shape[-2:] == (16, 16)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"crop": {"y": [0]}}, r"data\.crop\.y: \[0\] is no range of cells"),
        ({"size": [0, 64]}, r"data\.size=0: must be 1 or more"),
        ({"num_workers": -1}, r"data\.num_workers=-1: must be 0 or more"),
        ({"noise": -1.0}, r"data\.noise=-1\.0: must be 0 or more"),
        ({"eval_step": 0}, r"data\.eval_step=0: must be 1 or more"),
        ({"crop": {"w": [0, 3]}}, r"data\.crop\.w: .* has no such axis"),
        ({"channels": "independent"}, r"data\.channels=independent: ShearFlow names none"),
        ({"channels": ["vorticity"]}, r"has no 'vorticity'; did you mean velocity"),
    ],
)
def test_what_makes_no_sense_is_one_line(datasets, options, said):
    with pytest.raises(UserError, match=said):
        ShearFlow("shear_flow_tiny", root=str(datasets), **options).setup("fit")
