"""Positional reads return what h5py returns, bit by bit, in few calls and without needless bytes."""

import os
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import pytest

from physrep.data import reader, well
from physrep.data.well import WellSplit
from physrep.errors import UserError

KINDS = {
    "plain": {},
    "chunked": {"chunks": True},
    "gzip": {"compression": "gzip"},
    "float64": {"dtype": "f8"},
    "float16": {"dtype": "f2"},
    "big-endian": {"dtype": ">f4"},
    "never written": {"fillvalue": 2.5},
}
FIXED = {"mask": (False, False), "force": (False, True), "charge": (True, False)}  # sample_varying, time_varying


def write(folder: Path, shape: tuple[int, ...], kind: str = "plain", n: int = 3, frames: int = 7, block: int = 0):
    """One file by h5py alone: scalars, a vector and a tensor, and fields that do not vary; {name: whole array}."""
    dims, rng, held = "xyz"[: len(shape)], np.random.default_rng(0), {}
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "a.hdf5", "w", userblock_size=block) as f:
        f.attrs.update(dataset_name="a", n_trajectories=n)
        f.create_group("scalars").attrs["field_names"] = np.array([], dtype=h5py.string_dtype())
        f.create_group("dimensions").attrs["spatial_dims"] = list(dims)
        for name, size in {"time": frames, **dict(zip(dims, shape, strict=True))}.items():
            f["dimensions"][name] = np.arange(size)
        for rank, names in enumerate((["a", *FIXED], ["u"], ["Q"])):
            f.create_group(f"t{rank}_fields").attrs["field_names"] = np.array(names, dtype=h5py.string_dtype())
            for name in names:
                samples, times = FIXED.get(name, (True, True))
                sizes = (n,) * samples + (frames,) * times + shape + (len(shape),) * rank
                data = None if kind == "never written" else rng.normal(size=sizes)
                options = {"dtype": "f4"} | KINDS[kind]
                node = f[f"t{rank}_fields"].create_dataset(name, sizes, data=data, **options)
                node.attrs.update(sample_varying=samples, time_varying=times)
                every = node[()].astype("f4").reshape(*sizes[: samples + times], *shape, -1)
                every = every if samples else np.broadcast_to(every, (n, *every.shape))
                every = every if times else np.broadcast_to(every[:, None], (n, frames, *every.shape[1:]))
                held |= {(name, c): every[..., c] for c in range(every.shape[-1])}
    return np.stack(list(held.values()), 1)


def by_hand(every, trajectory, start, frames, stride, crop, channels):
    """The same window of all that a file holds, [N, C, T, *S], by numpy's indices."""
    out = every[trajectory, :, start : start + (frames - 1) * stride + 1 : stride]
    for axis, dim in enumerate("xyz"[: out.ndim - 2], start=2):
        cells = np.arange(*crop.get(dim, (0, out.shape[axis]))) % out.shape[axis]
        out = np.take(out, cells, axis)
    return out if channels is None else out[channels]


def windows(rng, every, number):
    """Random arguments of `read`: strides, channels, crops that wrap around."""
    n, c, t, *shape = every.shape
    for _ in range(number):
        stride = int(rng.integers(1, 4))
        frames = int(rng.integers(1, (t - 1) // stride + 2))
        start = int(rng.integers(t - (frames - 1) * stride))
        crop = {}
        for dim, size in zip("xyz", shape, strict=False):
            if rng.random() < 0.7:
                low = int(rng.integers(2 * size))
                crop[dim] = (low, low + int(rng.integers(1, size + 1)))
        some = sorted(rng.choice(c, rng.integers(1, c + 1), replace=False).tolist())
        yield int(rng.integers(n)), start, frames, stride, crop, some if rng.random() < 0.5 else None


@pytest.mark.parametrize("gap", [0, 100, reader.GAP])
@pytest.mark.parametrize("chunk", [1, 300, reader.CHUNK])
@pytest.mark.parametrize("shape", [(5,), (6, 9), (4, 5, 3)])
def test_any_window_is_the_one_by_hand(tmp_path, monkeypatch, gap, chunk, shape):
    every = write(tmp_path, shape)
    monkeypatch.setattr(reader, "GAP", gap)
    monkeypatch.setattr(reader, "CHUNK", chunk)
    reader._plan.cache_clear()
    split = WellSplit(tmp_path)
    for arguments in windows(np.random.default_rng(1), every, 40):
        want = by_hand(every, *arguments)
        got = split.read(*arguments)
        assert got.dtype == np.float32
        assert got.tobytes() == want.tobytes(), arguments
        out = np.full_like(want, np.nan)
        assert split.read(*arguments, out=out) is out
        assert out.tobytes() == want.tobytes()
    assert all(place.begin is not None for place in split._open(split.header.path)._places.values())
    reader._plan.cache_clear()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "plain"])
def test_what_is_not_contiguous_float32_is_left_to_h5py(tmp_path, monkeypatch, kind):
    every = write(tmp_path, (6, 9), kind, block=512)
    split = WellSplit(tmp_path)
    for long_run in (1, reader.LONG_RUN):
        monkeypatch.setattr(reader, "LONG_RUN", long_run)
        for arguments in windows(np.random.default_rng(2), every, 25):
            assert split.read(*arguments).tobytes() == by_hand(every, *arguments).tobytes(), arguments
    assert {place.begin for place in split._open(split.header.path)._places.values()} == {None}


def test_a_user_block_moves_all_offsets(tmp_path):
    every = write(tmp_path, (6, 9), block=1024)
    assert WellSplit(tmp_path).read(1, 2, 3).tobytes() == by_hand(every, 1, 2, 3, 1, {}, None).tobytes()


@pytest.fixture
def calls(monkeypatch):
    """The bytes of every positional read."""
    seen, real = [], os.preadv

    def spy(handle, buffers, offset):
        seen.append(real(handle, buffers, offset))
        return seen[-1]

    monkeypatch.setattr(reader.os, "preadv", spy)
    return seen


@pytest.mark.parametrize(
    ("crop", "sizes"),
    [
        ({}, [4 * 256 * 256 * 4]),  # a window in one run
        ({"x": (0, 128)}, [128 * 256 * 4] * 4),  # half of each frame, and nothing else
        ({"x": (192, 320)}, [64 * 256 * 4] * 8),  # in two runs where it wraps around
        ({"y": (0, 128)}, [4 * 256 * 256 * 4]),  # runs of 512 bytes: better all of it
        ({"x": (0, 128), "y": (64, 128)}, [128 * 256 * 4] * 4),
    ],
)
def test_no_needless_bytes_and_calls(tmp_path, calls, crop, sizes):
    path = tmp_path / "a.hdf5"
    fields = {"a": np.random.default_rng(0).random((1, 6, 256, 256), np.float32)}
    well.write(path, "a", fields, {}, {"x": np.arange(256.0), "y": np.arange(256.0)}, np.arange(6.0), {})
    got = WellSplit(tmp_path).read(0, 1, 4, crop=crop)
    assert calls == sizes
    np.testing.assert_array_equal(got, by_hand(fields["a"][:, None], 0, 1, 4, 1, crop, None))


def test_fields_that_are_not_asked_for_are_not_read(tmp_path, calls):
    write(tmp_path, (6, 9))
    split = WellSplit(tmp_path)
    split.read(0, 0, 2, channels=[split.header.channels.index("u_y")])
    assert calls == [2 * 6 * 9 * 2 * 4]


def test_a_file_that_ends_too_early_is_one_line(tmp_path):
    write(tmp_path, (6, 9))
    split = WellSplit(tmp_path)
    split.read(0, 0, 1)
    path = split.header.path
    os.truncate(path, path.stat().st_size - 3000)
    with pytest.raises(UserError, match=r"a\.hdf5: /t._fields/. cannot be read; download or simulate it again$"):
        split.read(2, 6, 1)
    split._handles.popitem()[1].close()
    with pytest.raises(UserError, match=r"a\.hdf5: cannot be opened \(.*truncated"):
        split.read(0, 0, 1)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_only_so_many_files_are_open(own_datasets, monkeypatch):
    split = WellSplit(own_datasets / "shear_flow_tiny" / "data" / "train")
    monkeypatch.setattr(well, "OPEN_FILES", 2)
    before = open_files()
    first = [split.read(i, 0, 2) for i in range(0, 24, 3)]
    assert list(split._handles) == [split.headers[2].path, split.headers[3].path]
    assert open_files() == before + 2
    for i, clip in zip(range(0, 24, 3), first, strict=True):
        np.testing.assert_array_equal(split.read(i, 0, 2), clip)


def test_a_forked_process_opens_its_own_files(datasets):
    split = WellSplit(datasets / "shear_flow_tiny" / "data" / "train")
    want = split.read(5, 1, 3)
    context = get_context("fork")
    queue = context.SimpleQueue()

    def child():
        inherited = list(split._handles.values())
        same = split.read(5, 1, 3).tobytes() == want.tobytes()
        queue.put((same, any(reader in inherited for reader in split._handles.values())))

    process = context.Process(target=child)
    process.start()
    assert queue.get() == (True, False)
    process.join()
