"""Files that are whole or absent, and the room for them."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import h5py
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from physrep.errors import UserError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`, renamed to it when the block ends well and removed when it does not.

    Raises OSError naming `path` for what the disk refuses, also where torch makes a RuntimeError of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        number = _refusal(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _refusal(error: BaseException | None) -> int | None:
    """Return the system's error number behind an exception."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        error = error.__cause__ or error.__context__
    return None


def lock(file: TextIO, inherited: bool = True) -> bool:
    """Take the lock on an open file, without waiting; where a file system has no locks, nobody holds one.

    Child processes inherit it with the file, and hold it on, or it ends with this process.
    """
    try:
        (fcntl.flock if inherited else fcntl.lockf)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF):
            raise
    return True


@contextmanager
def whole_hdf5(path: Path) -> Iterator[h5py.File]:
    """Give an HDF5 file to fill, which is written to `path` at the end, whole or not at all.

    It is built in memory: HDF5 itself does not survive a disk that fills up while it writes.
    """
    with h5py.File(path.name, "w", driver="core", backing_store=False, block_size=1 << 24) as file:
        yield file
        file.flush()
        image = file.id.get_file_image()
    with whole(path) as temporary:
        temporary.write_bytes(image)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_yaml(path: Path, remedy: str) -> dict[str, Any]:
    """Return the mapping that a YAML file holds. Raises UserError, with what mends it, for anything else."""
    try:
        held = OmegaConf.to_container(OmegaConf.load(path))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: not YAML; {remedy}") from error
    if not isinstance(held, dict):
        raise UserError(f"{path}: not a mapping of keys to values; {remedy}")
    return {str(k): v for k, v in held.items()}


def free_bytes(folder: Path) -> int:
    """Return what is free where the folder is, or will be."""
    there = next(place for place in (folder.resolve(), *folder.resolve().parents) if place.exists())
    return shutil.disk_usage(there).free


def amount(size: float) -> str:
    """Return a number of bytes as text."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
