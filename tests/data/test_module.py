"""The data module: batches against reading by hand, order, resume, statistics, shifts and noise."""

import h5py
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from physrep.data import windows
from physrep.data.module import WellDataModule
from physrep.data.sampler import WindowSampler, step_seed
from physrep.data.shear_flow import ShearFlow
from physrep.data.transforms import resize
from physrep.errors import UserError


def make(root, clips="one", **options):
    data = ShearFlow("shear_flow_tiny", root=str(root), **{"frames": 8, "batch_size": 4} | options)
    data.clips = clips
    data.setup("fit")
    return data


def everything(root, split):
    """All fields of a split by plain h5py, [trajectories, C, T, H, W]."""
    out = []
    for path in sorted((root / "shear_flow_tiny" / "data" / split).glob("*.hdf5")):
        with h5py.File(path) as f:
            v = f["t1_fields/velocity"][()]
            out.append(np.stack([f["t0_fields/tracer"][()], f["t0_fields/pressure"][()], v[..., 0], v[..., 1]], 1))
    return np.concatenate(out)


def test_batches_are_the_standardised_windows(datasets):
    data = make(datasets)
    train, test = everything(datasets, "train").astype(np.float64), everything(datasets, "test")
    mean, std = train.mean((0, 2, 3, 4)), train.std((0, 2, 3, 4))
    raw = list(data.test_dataloader())
    batches = [data.prepare_batch(r, augment=False) for r in raw]
    clip = torch.cat([b["clip"] for b in batches])
    want = np.stack([test[i, :, t : t + 8] for i in range(12) for t in (0, 8)])
    want = (want - mean[:, None, None, None]) / std[:, None, None, None]
    np.testing.assert_allclose(clip, want, atol=2e-5)
    theta = torch.cat([b["theta"] for b in batches])
    re = (np.log10([100, 400]) - np.log10([100, 400]).mean()) / np.log10([100, 400]).std()
    assert theta[:12, 0].tolist() == pytest.approx([re[0]] * 12, abs=1e-6)
    assert sorted({round(float(x), 5) for x in theta[:, 1]}) == [-1.0, 1.0]
    assert torch.cat([b["trajectory"] for b in batches]).tolist() == [i for i in range(12) for _ in (0, 8)]


def test_next_holds_the_clip_and_the_one_after(datasets):
    data = make(datasets, clips="next")
    assert len(data.windows("train")) == 24 * (20 - 16 + 1)
    raw = next(iter(data.test_dataloader()))
    np.testing.assert_array_equal(raw["clip"][0], everything(datasets, "test")[0, :, :16])


def test_pair_holds_two_windows_of_one_trajectory(datasets):
    data = make(datasets, clips="pair")
    every = everything(datasets, "train")
    seconds = set()
    for raw in data.train_dataloader():
        for clip, i in zip(raw["clip"].numpy(), raw["trajectory"], strict=True):
            at = [t for half in (clip[:, :8], clip[:, 8:]) for t in range(13) if (every[i, :, t : t + 8] == half).all()]
            assert len(at) == 2
            seconds.add(at[1] - at[0])
    assert len(seconds) > 5


def test_stats_file_is_the_wells_and_kept(own_datasets):
    data = make(own_datasets)
    path = data.folder / "stats.yaml"
    held = OmegaConf.to_container(OmegaConf.load(path))
    train = everything(own_datasets, "train").astype(np.float64)
    assert held["mean"]["tracer"] == pytest.approx(train[:, 0].mean(), abs=1e-9)
    assert held["std"]["velocity"] == pytest.approx(train[:, 2:].std((0, 2, 3, 4)).tolist(), rel=1e-6)
    assert held["rms_delta"]["pressure"] == pytest.approx(np.sqrt((np.diff(train[:, 1], axis=1) ** 2).mean()), rel=1e-6)
    the_well = pytest.importorskip("the_well.data")
    from the_well.data.normalization import ZScoreNormalization

    theirs = the_well.WellDataset(path=str(data.folder), well_split_name="test", n_steps_input=8, n_steps_output=1,
                                  use_normalization=True, normalization_type=ZScoreNormalization)  # fmt: skip
    raw = next(iter(data.loader("test", data.windows("test", 100))))
    ours = data.prepare_batch(raw, augment=False)["clip"][0]
    torch.testing.assert_close(theirs[0]["input_fields"].permute(3, 0, 1, 2), ours, atol=1e-5, rtol=1e-5)

    held["mean"]["tracer"] = 5.0
    path.write_text(OmegaConf.to_yaml(held))
    assert make(own_datasets).statistics["mean"][0] == 5.0, "kept statistics are used"
    held["fingerprint"] = "of other data"
    path.write_text(OmegaConf.to_yaml(held))
    assert make(own_datasets).statistics["mean"][0] == pytest.approx(train[:, 0].mean(), abs=1e-9)
    path.write_text("nonsense: 1")
    with pytest.raises(UserError, match=r"stats\.yaml: not a statistics file"):
        _ = make(own_datasets).statistics


def test_fingerprint_follows_content(own_datasets):
    before = make(own_datasets).fingerprint
    assert make(own_datasets).fingerprint == before
    path = sorted((own_datasets / "shear_flow_tiny" / "data" / "train").glob("*"))[0]
    with h5py.File(path, "r+") as f:
        f["t0_fields/tracer"][0, 0, 0, 0] += 1
    assert make(own_datasets).fingerprint != before


def test_nan_is_found_by_statistics_and_by_reading(own_datasets):
    for split, what in (("test", "window"), ("train", "t0_fields/pressure")):
        path = sorted((own_datasets / "shear_flow_tiny" / "data" / split).glob("*"))[1]
        with h5py.File(path, "r+") as f:
            f["t0_fields/pressure"][1, 3, 2, 2] = np.nan
        (own_datasets / "shear_flow_tiny" / "stats.yaml").unlink(missing_ok=True)
        with pytest.raises(UserError, match="holds? NaN|NaN or infinity") as error:
            list(make(own_datasets).test_dataloader())
        assert str(path) in str(error.value)
        assert what in str(error.value)


def test_values_whose_sum_overflows_are_finite(own_datasets):
    path = sorted((own_datasets / "shear_flow_tiny" / "data" / "test").glob("*"))[0]
    with h5py.File(path, "r+") as f:
        f["t0_fields/pressure"][:] = 3e38
    seen = torch.cat([batch["clip"] for batch in make(own_datasets).test_dataloader()])
    assert seen.isfinite().all()
    assert seen.max() == np.float32(3e38)


def test_order_is_a_function_of_seed_and_epoch():
    windows = np.array([(i, t) for i in range(5) for t in range(4)])

    def order(seed, epoch, skip=0, rank=0, world=1):
        sampler = WindowSampler(windows, seed, pair=True, shuffle=True, rank=rank, world=world)
        sampler.set_epoch(epoch)
        sampler.skip = skip
        return list(sampler)

    whole = order(0, 3)
    assert whole == order(0, 3)
    assert sorted(k[1:3] for k in whole) == [tuple(w) for w in windows.tolist()]
    assert [k[1:3] for k in whole] != [k[1:3] for k in order(0, 4)] != [k[1:3] for k in order(1, 4)]
    assert order(0, 3, skip=7) == whole[7:]
    assert [
        k for pair in zip(order(0, 3, rank=0, world=2), order(0, 3, rank=1, world=2), strict=True) for k in pair
    ] == whole
    assert all(0 <= k[3] < 4 for k in whole)
    assert len({k[0] for e in range(3) for k in order(0, e)}) == 60, "draws number the samples of the whole run"
    sampler = WindowSampler(windows, 0, pair=False, shuffle=True)
    sampler.skip = 5
    assert len(list(sampler)) == 15
    assert len(list(sampler)) == 20, "only the first epoch is entered part-way"


def test_step_seed_tells_numbers_apart():
    seen = {step_seed(a, b, c) for a in range(6) for b in range(6) for c in range(6)}
    assert len(seen) == 216
    assert step_seed(0) != step_seed(0, 0)


@pytest.mark.parametrize("clips", ["next", "pair"])
def test_training_windows_lie_at_random_places(datasets, clips):
    """Every window is the file's, rolled along x (shift) and cut out of y, the same for both clips of `next`."""
    data = make(datasets, clips, shift=True, cut={"y": 8})
    every = everything(datasets, "train")
    seen = []
    loader = data.train_dataloader()
    for key, raw in zip(iter(data._sampler), loader, strict=False):
        assert raw["clip"].shape == (4, 4, 16, 16, 8)
        _, trajectory, *starts = key
        clip = loader.dataset.__getitems__([key])["clip"][0]
        parts = [clip] if clips == "next" else [clip[:, :8], clip[:, 8:]]
        for part, t in zip(parts, starts, strict=True):
            whole = every[trajectory, :, t : t + part.shape[1]]
            places = [(a, b) for a in range(16) for b in range(32)
                      if np.array_equal(np.roll(whole[:, 0], (-a, -b), (1, 2))[..., :8], part[:, 0])]  # fmt: skip
            assert len(places) == 1
            a, b = places[0]
            assert np.array_equal(np.roll(whole, (-a, -b), (2, 3))[..., :8], part)
            seen += places
    assert len(set(seen)) > len(seen) / 2
    assert max(b for _, b in seen) > 24, "a cut wraps around a periodic axis"
    raw = next(iter(data.val_dataloader()))
    assert raw["clip"].shape[-2:] == (16, 32), "evaluation sees the whole grid"


def test_places_and_noise_are_functions_of_seed_and_draw(datasets):
    def first(seed, noise):
        data = make(datasets, shift=True, cut={"y": 8}, noise=noise, seed=seed)
        return data.prepare_batch(next(iter(data.train_dataloader())), augment=True)["clip"]

    assert torch.equal(first(0, 0.5), first(0, 0.5))
    assert not torch.equal(first(0, 0.5), first(1, 0.5))
    assert float((first(0, 0.5) - first(0, 0.0)).std()) == pytest.approx(0.5, rel=0.05)
    data = make(datasets, noise=0.5)
    raw = next(iter(data.train_dataloader()))
    assert torch.equal(data.prepare_batch(raw, augment=False)["clip"], data.prepare_batch(raw, augment=False)["clip"])


def test_nothing_is_drawn_where_nothing_is_random(datasets, monkeypatch):
    plain, noisy = make(datasets), make(datasets, noise=0.5)
    raw = next(iter(plain.train_dataloader()))
    monkeypatch.setattr(torch, "Generator", None)
    plain.prepare_batch(raw, augment=True)
    noisy.prepare_batch(raw, augment=False)
    with pytest.raises(TypeError):
        noisy.prepare_batch(raw, augment=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="beside a GPU, torch keeps the pinned memory")
def test_memory_is_used_again_when_nobody_holds_it(datasets):
    batches = iter(make(datasets).train_dataloader())
    clip = next(batches)["clip"]
    first, place = clip[1:2], clip.data_ptr()
    kept = first.clone()
    del clip
    assert next(batches)["clip"].data_ptr() != place
    assert torch.equal(first, kept)
    del first
    held = [next(batches)["clip"] for _ in range(3)]
    assert place in [clip.data_ptr() for clip in held]
    assert len({clip.data_ptr() for clip in held}) == 3


def test_a_worker_reads_into_shared_memory(datasets, monkeypatch):
    monkeypatch.setattr(windows, "get_worker_info", lambda: True)
    assert next(iter(make(datasets).train_dataloader()))["clip"].is_shared()


def test_a_wall_is_not_crossed(walled):
    data = make(walled, shift=True, cut={"y": 30})
    assert data.periodic == ["x"]
    dataset = data.train_dataloader().dataset
    places = [dataset._place(np.random.default_rng(i)) for i in range(50)]
    assert {p["y"] for p in places} == {(0, 30), (1, 31), (2, 32)}
    assert len({p["x"] for p in places}) > 10


def test_grid(datasets):
    assert make(datasets, crop={"y": [0, 16]}).grid() == [16, 16]
    assert make(datasets, crop={"y": [4, 16]}, size=[8, 8]).grid() == [16, 12]


def test_resize_is_bilinear_and_keeps_means():
    clip = torch.randn(2, 3, 4, 16, 32)
    small = resize(clip, [8, 16])
    assert small.shape == (2, 3, 4, 8, 16)
    want = torch.nn.functional.interpolate(clip[:, :, 1], (8, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(small[:, :, 1], want)
    assert resize(clip, [16, 32]) is clip


def test_workers_read_the_same(datasets):
    a, b = (torch.cat([r["clip"] for r in make(datasets, num_workers=n).train_dataloader()]) for n in (0, 2))
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"crop": {"z": [0, 4]}}, "data.crop.z"),
        ({"crop": {"y": [0, 64]}}, "lies outside the grid"),
        ({"cut": {"y": 33}}, "data.cut.y: 33 cells do not fit"),
        ({"cut": {"y": 8}, "crop": {"y": [0, 16]}}, "data.cut.y: data.crop cuts y already"),
        ({"step": 0}, "data.step=0: must be 1 or more"),
        ({"frames": 30}, "has 20 frames, a window needs 30"),
        ({"batch_size": 5000}, "is more than the"),
        ({"targets": {"Reynolds": "log"}}, "no such scale 'log'"),
        ({"targets": {"Rynolds": "log10"}}, "did you mean Reynolds"),
    ],
)
def test_bad_options_are_named(datasets, options, said):
    with pytest.raises(UserError, match=said):
        make(datasets, **options)


def test_missing_dataset_and_empty_split(own_datasets):
    with pytest.raises(UserError, match="no such dataset.*did you mean shear_flow_tiny"):
        _ = ShearFlow("shear_flow_tin", root=str(own_datasets)).splits
    for path in (own_datasets / "shear_flow_tiny" / "data" / "valid").glob("*"):
        path.unlink()
    with pytest.raises(UserError, match=r"valid: holds no \.hdf5 file"):
        make(own_datasets)


def test_the_general_class_needs_no_knowledge(datasets):
    data = WellDataModule("shear_flow_tiny", root=str(datasets), targets={"Schmidt": "linear"}, frames=4)
    data.setup("fit")
    batch = data.prepare_batch(next(iter(data.train_dataloader())), augment=False)
    assert batch["clip"].shape == (32, 4, 4, 16, 32)
    assert batch["theta"].shape == (32, 1)


@pytest.mark.parametrize("clips", ["one", "next", "pair"])
def test_normalised_by_clip(datasets, clips):
    """By the first clip's own frames; of a pair each by its own, since each is embedded alone."""
    data = ShearFlow("shear_flow_tiny", root=str(datasets), frames=4, batch_size=6, normalise="clip")
    data.clips = clips
    data.setup("fit")
    plain = ShearFlow("shear_flow_tiny", root=str(datasets), frames=4, batch_size=6)
    plain.clips = clips
    plain.setup("fit")
    ours, theirs = (d.prepare_batch(next(iter(d.train_dataloader())), augment=True)["clip"] for d in (data, plain))
    for i in range(6):
        for c in range(4):
            for part in range(2 if clips == "pair" else 1):
                first = theirs[i, c, 4 * part : 4 * part + 4]
                rest = slice(4, 8) if clips == "pair" and part else slice(0, 8 if clips == "next" else 4)
                want = (theirs[i, c, rest] - first.mean()) / first.std(correction=0)
                torch.testing.assert_close(ours[i, c, rest], want, atol=1e-3, rtol=1e-3)
