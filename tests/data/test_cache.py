"""The cache: the same batches up to float16 rounding, never stale ones; made once, shared, removed by its last user."""

import gc
import pickle
import subprocess
import sys
from itertools import islice
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from physrep.data import cache
from physrep.data.cache import Kept
from physrep.data.shear_flow import ShearFlow
from physrep.data.well import WellSplit
from physrep.data.windows import WindowDataset
from physrep.errors import UserError

PLACES = ("ram", "disk", "device")


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch):
    """A folder of the test's own in place of the host's shared memory."""
    monkeypatch.setattr(cache, "MEMORY", tmp_path / "shm")
    (tmp_path / "shm").mkdir()
    yield tmp_path / "shm"
    gc.collect()


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*.f16"))


def make(root, clips="one", **options):
    data = ShearFlow("shear_flow_tiny", root=str(root), **{"frames": 6, "batch_size": 8} | options)
    data.clips = clips
    data.setup("fit")
    return data


def batches(data, number=3):
    return [data.prepare_batch(raw, augment=True) for raw in islice(data.train_dataloader(), number)]


CHOICES = [
    {},
    {"stride": 2, "channels": ["velocity_y", "tracer"]},
    {"shift": True, "cut": {"y": 12}, "clips": "pair"},
    {"crop": {"y": [4, 20]}, "shift": True, "clips": "next", "noise": 0.5},
    {"symmetries": True, "cut": {"y": 16}, "channels": ["velocity"], "dropout": 0.3},
    {"size": [8, 8], "num_workers": 2, "shift": True},
]


@pytest.mark.parametrize(
    ("where", "options"),
    [("ram", options) for options in CHOICES] + [(where, CHOICES[i]) for where in ("disk", "device") for i in (2, 4)],
    ids=lambda x: x if isinstance(x, str) else "-".join(x) or "plain",
)
def test_batches_differ_by_rounding_alone(own_datasets, where, options):
    """The bound is half of float16's spacing; mirrored fields go through the files' units and back in float32."""
    plain = batches(make(own_datasets, **options))
    cached = batches(make(own_datasets, cache=where, **options))
    for a, b in zip(plain, cached, strict=True):
        assert torch.equal(a["theta"], b["theta"]) and torch.equal(a["trajectory"], b["trajectory"])
        scale = a["clip"].abs().amax((2, 3, 4), keepdim=True) if "size" in options or "noise" in options else a["clip"]
        bound = scale.abs() * 2**-11 + 2**-25 + 4e-6 * a["clip"].abs().max()
        assert b["clip"].dtype == torch.float32
        assert ((a["clip"] - b["clip"]).abs() <= bound).all()
        assert not torch.equal(a["clip"], b["clip"])


@pytest.mark.parametrize("where", ["ram", "device"])
def test_a_resumed_run_gets_the_same_windows(own_datasets, where):
    options = {"cache": where, "shift": True, "cut": {"y": 8}, "noise": 0.1, "num_workers": 2}
    whole = make(own_datasets, **options)
    whole._sampler.set_epoch(2)
    want = batches(whole, 6)[3:]
    resumed = make(own_datasets, **options)
    resumed._sampler.set_epoch(2)
    resumed._sampler.skip = 3 * 8
    assert all(torch.equal(a["clip"], b["clip"]) for a, b in zip(want, batches(resumed), strict=True))


def test_what_goes_to_the_device_is_half_or_nothing(own_datasets):
    raw = {where: next(iter(make(own_datasets, cache=where).train_dataloader())) for where in PLACES}
    assert raw["ram"]["clip"].dtype == raw["disk"]["clip"].dtype == torch.float16
    assert "clip" not in raw["device"]
    loader = make(own_datasets, cache="device", num_workers=2).train_dataloader()
    assert loader.num_workers == 0


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_device_holds_what_memory_holds(datasets, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    split = WellSplit(datasets / "shear_flow_tiny" / "data" / "train")
    here, there = (Kept(split, {}, [0, 3], torch.zeros(2), torch.ones(2), "") for _ in range(2))
    here.hold_in_memory("tiny")
    there.hold_on(torch.device(device))
    sets = [WindowDataset(split, np.zeros((24, 0)), 4, 2, {}, {"x": 16, "y": 9}, ["x", "y"], 0, [0, 3], kept)
            for kept in (here, there)]  # fmt: skip
    keys = [(draw, draw % 24, draw % 13) for draw in range(16)]
    samples = sets[1].__getitems__(keys)["samples"]
    assert torch.equal(sets[0].__getitems__(keys)["clip"], sets[1].fetch(samples).cpu())


def test_evaluation_reads_the_files(own_datasets, memory):
    data = make(own_datasets, cache="ram")
    for loader in (data.val_dataloader(), data.test_dataloader(), data.loader("train")):
        assert next(iter(loader))["clip"].dtype == torch.float32
    assert files(memory) == []


def test_a_stale_cache_is_not_used(own_datasets):
    def key(**options):
        data = make(own_datasets, cache="disk", **options)
        data.train_dataloader()
        return data._kept.key

    folder = own_datasets / "shear_flow_tiny"
    keys = [key(), key(crop={"x": [0, 8]}), key(crop={"x": [1, 9]}), key(channels=["tracer"])]
    assert keys[0] == key(frames=3, clips="pair", shift=True, cut={"y": 8}, batch_size=4, symmetries=True, seed=1)
    path = sorted((folder / "data" / "train").glob("*"))[1]
    with h5py.File(path, "r+") as f:
        f["t0_fields/tracer"][0, 7] += 1  # which no first or last frame shows
    keys.append(key())
    stats = folder / "stats.yaml"
    stats.write_text(stats.read_text().replace("std:\n  tracer:", "std:\n  tracer: 2.0 #"))
    keys.append(key())
    assert len(set(keys)) == len(keys)
    assert files(folder) == sorted(f"train-{k}.f16" for k in keys)
    sizes = [(folder / "cache" / f"train-{k}.f16").stat().st_size // (2 * 24 * 20) for k in keys]
    assert sizes == [4 * 16 * 32, 4 * 8 * 32, 4 * 8 * 32, 16 * 32, 4 * 16 * 32, 4 * 16 * 32]


def test_it_does_not_fit(own_datasets, monkeypatch, memory):
    need = 4 * 24 * 20 * 16 * 32 * 2
    limits = {"ram": ["free_bytes", "_free_memory"], "disk": ["free_bytes"], "device": ["_free_memory"]}
    for where, name in ((where, name) for where, names in limits.items() for name in names):
        with monkeypatch.context() as patch:
            patch.setattr(cache, name, lambda *_: need - 1)
            with pytest.raises(UserError, match=rf"^data\.cache={where}: .* takes 2 MB, .* has 2 MB free; crop"):
                make(own_datasets, cache=where).train_dataloader()
    assert files(own_datasets) == files(memory) == []


def test_what_cannot_be_held_is_refused(own_datasets, memory):
    path = sorted((own_datasets / "shear_flow_tiny" / "data" / "train").glob("*"))[2]
    make(own_datasets)  # statistics from before
    split = WellSplit(path.parent)
    with pytest.raises(UserError, match="values too far out for half precision in frames"):
        Kept(split, {}, [0], torch.zeros(1), torch.full((1,), 1e-8), "").hold_in_memory("tiny")
    with h5py.File(path, "r+") as f:
        f["t0_fields/pressure"][3, 11, 2, 2] = np.nan
    with pytest.raises(UserError, match=rf"{path.name}: NaN or infinity in frames 0 to 19; write the file again"):
        Kept(split, {}, [1], torch.zeros(1), torch.ones(1), "").hold_in_memory("tiny")
    assert [p.name for p in memory.rglob("*") if p.is_file()] == [".lock"]


def test_memory_is_given_back_by_the_last_user(datasets, memory, capsys):
    split = WellSplit(datasets / "shear_flow_tiny" / "data" / "train")

    def hold(*channels):
        kept = Kept(split, {}, channels, torch.zeros(len(channels)), torch.ones(len(channels)), "")
        kept.hold_in_memory("tiny")
        return kept

    first, second = hold(0), hold(0)
    assert capsys.readouterr().err.count("data.cache=ram: ") == 1
    assert np.shares_memory(first.arrays[0], first.arrays[0][:, 3:])
    (memory / Path(first.path).parent.name / ".tiny-killed.f16.123").write_bytes(b"left by a killed run")
    (memory / Path(first.path).parent.name / "tiny-killed.f16").write_bytes(b"left by a killed run")
    del first
    gc.collect()
    assert files(memory) == sorted([second.path.name, "tiny-killed.f16"])
    third = hold(1)  # sweeps what nobody holds
    assert files(memory) == sorted([second.path.name, third.path.name])
    assert len(list(second.path.parent.iterdir())) == 3
    want = split.read(7, 2, 3)[0].astype(np.float16)
    copy = pickle.loads(pickle.dumps(second))
    got = np.empty((1, 3, 16, 32), np.float16)
    copy.read(7, 2, 3, 1, {}, got)
    np.testing.assert_array_equal(got[0], want)
    assert len(pickle.dumps(second)) < 20_000
    del copy
    assert second.path.exists(), "a worker's copy does not own it"
    del second, third
    gc.collect()
    assert files(memory) == []


USER = """
import sys, time
from pathlib import Path
import torch
from physrep.data import cache
from physrep.data.well import WellSplit
folder, memory = map(Path, sys.argv[1:3])
def meet(name):
    (memory / f"{name}-{sys.argv[3]}").touch()
    while len(list(memory.glob(f"{name}-*"))) < 2:
        time.sleep(0.001)
cache.MEMORY = memory
kept = cache.Kept(WellSplit(folder), {}, [0, 2], torch.zeros(2), torch.ones(2), "mark")
meet("ready")
kept.hold_in_memory("tiny")
meet("holding")
print(float(sum(a.astype("f8").sum() for a in kept.arrays)), kept.path)
"""


def test_two_processes_share_one_file_and_fill_it_once(datasets, memory):
    folder = datasets / "shear_flow_tiny" / "data" / "train"
    users = [subprocess.Popen([sys.executable, "-c", USER, folder, memory, str(i)], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True) for i in range(2)]  # fmt: skip
    said = [user.communicate(timeout=120) for user in users]
    assert [user.returncode for user in users] == [0, 0], said
    assert sum(err.count("data.cache=ram") for _, err in said) == 1
    split = WellSplit(folder)
    want = sum(split.read(i, 0, 20)[[0, 2]].astype(np.float16).astype("f8").sum() for i in range(24))
    totals, paths = zip(*(out.split() for out, _ in said), strict=True)
    assert [float(total) for total in totals] == pytest.approx([want] * 2, abs=1e-6)
    assert len(set(paths)) == 1
    assert files(memory) == [], "the last to leave removes it"
