"""Download a dataset of The Well with its own downloader, into <data.root>/<data.name>/data/{train,valid,test}.

    python -m physrep.download data=shear_flow data.root=/scratch/datasets
    python -m physrep.download data=well data.name=MHD_64 split=test

What is there stays, and what is there in part goes on where it stopped: after an interruption, the same command.
"""

from __future__ import annotations

import importlib
import io
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import h5py
import yaml

from physrep import errors
from physrep.config import build, cli
from physrep.errors import UserError, did_you_mean
from physrep.files import read_yaml, write_text

if TYPE_CHECKING:
    from physrep.data.module import WellDataModule

GIGABYTES = {  # of the published files, 1e9 bytes
    "MHD_256": 4698, "MHD_64": 73.4, "acoustic_scattering_discontinuous": 161.5, "acoustic_scattering_inclusions":
    290.7, "acoustic_scattering_maze": 318.8, "active_matter": 52.6, "convective_envelope_rsg": 583.8,
    "euler_multi_quadrants_openBC": 2648, "euler_multi_quadrants_periodicBC": 2648, "gray_scott_reaction_diffusion":
    157.4, "helmholtz_staircase": 53.7, "planetswe": 190.3, "post_neutron_star_merger": 112.7, "rayleigh_benard": 367,
    "rayleigh_benard_uniform": 367, "rayleigh_taylor_instability": 259.5, "shear_flow": 469.8,
    "supernova_explosion_128": 772.1, "supernova_explosion_64": 274.7, "turbulence_gravity_cooling": 849.3,
    "turbulent_radiative_layer_2D": 7.1, "turbulent_radiative_layer_3D": 762.5, "viscoelastic_instability": 67.9,
}  # fmt: skip
SHARES = {"train": 0.8, "valid": 0.1, "test": 0.1}  # of a dataset's bytes, about
SIGNATURE = b"\x89HDF\r\n\x1a\n"


def main(argv: Sequence[str]) -> None:
    """Run `python -m physrep.download`."""
    cfg = cli(argv, base="download", doc=__doc__)
    if cfg.split not in (None, *SHARES):
        raise UserError(f"split={cfg.split}: no such split{did_you_mean(str(cfg.split), SHARES)}")
    package = downloader()
    data: WellDataModule = build(cfg.data)
    download(package, data.folder, list(SHARES) if cfg.split is None else [cfg.split])
    same = [argument for argument in argv if not argument.startswith("split=")]
    chosen = [] if any(argument.startswith("data=") for argument in same) else [f"data={cfg.choices.data}"]
    print(f"next: python -m physrep.verify {shlex.join(chosen + same)}")


def downloader() -> Any:
    """Return The Well's module with `well_download`; raises UserError where it, or curl, is not installed."""
    try:
        package = importlib.import_module("the_well.utils.download")
    except ImportError:
        raise UserError("the_well: not installed; pip install 'physrep[well]' "
                        "(in a checkout: pip install -e '.[well]')") from None  # fmt: skip
    if shutil.which("curl") is None:
        raise UserError("curl: not found, and The Well's downloader needs it; install it")
    return package


def download(package: Any, folder: Path, splits: Sequence[str]) -> None:
    """Download splits of the dataset `folder.name`.

    Raises UserError for a dataset that The Well has not, a disk that has no room and files that did not arrive whole.
    """
    from physrep.files import amount, free_bytes

    registry = yaml.safe_load(Path(package.WELL_REGISTRY).read_text())
    if folder.name not in registry:
        raise UserError(f"data.name={folder.name}: The Well has no such dataset{did_you_mean(folder.name, registry)}")
    wanted = {s: [folder / "data" / s / url.rpartition("/")[2] for url in registry[folder.name][s]] for s in splits}
    paths = [path for files in wanted.values() for path in files]
    for path in paths:
        drop_page(path)
    there, free = sum(path.stat().st_size for path in paths if path.exists()), free_bytes(folder)
    gigabytes = GIGABYTES.get(folder.name)
    size = None if gigabytes is None else gigabytes * 1e9 * sum(SHARES[s] for s in splits)
    said = "size unknown" if size is None else amount(size)
    had = f", {amount(there)} there" if there else ""
    print(f"{folder}: {said}{had}, {amount(free)} of disk free", flush=True)
    if size is not None and size - there > free and not all(map(is_whole, paths)):
        raise UserError(f"{folder}: needs {amount(size - there)} and the disk has {amount(free)} free; "
                        "set data.root=... to another disk or take one split=...")  # fmt: skip
    folder.parent.mkdir(parents=True, exist_ok=True)
    with keep_statistics(folder / "stats.yaml"), base(folder.parent) as place:
        for split, files in wanted.items():
            print(f"{folder / 'data' / split}: {len(files)} files", flush=True)
            with redirect_stdout(io.StringIO()):  # it would name the link
                package.well_download(str(place), folder.name, split, registry_path=package.WELL_REGISTRY)
            for path in files:
                drop_page(path)
            if broken := [path for path in files if not is_whole(path)]:
                raise UserError(f"{folder / 'data' / split}: {len(broken)} of {len(files)} files did not arrive whole "
                                f"({broken[0].name}); the same command goes on where it stopped")  # fmt: skip


@contextmanager
def base(root: Path) -> Iterator[Path]:
    """Give a folder whose `datasets`, where the package writes, is `root`, and have curl refuse pages of errors.

    The package's curl would write a server's "503" page to, or behind, what it holds of a file.
    """
    with TemporaryDirectory() as name:
        place, old = Path(name), os.environ.get("CURL_HOME")
        (place / "datasets").symlink_to(root.resolve())
        own = Path(old or Path.home()) / ".curlrc"
        (place / ".curlrc").write_text("fail\n" + (own.read_text() if own.exists() else ""))
        os.environ["CURL_HOME"] = name
        try:
            yield place
        finally:
            del os.environ["CURL_HOME"]
            os.environ |= {} if old is None else {"CURL_HOME": old}


@contextmanager
def keep_statistics(path: Path) -> Iterator[None]:
    """Keep a stats.yaml that is there (curl would append to it) and leave none that is not one."""

    def sound() -> bool:
        try:
            return path.exists() and {"mean", "std"} <= read_yaml(path, "").keys()
        except UserError:
            return False

    text = path.read_text() if sound() else None
    path.unlink(missing_ok=True)
    try:
        yield
    finally:
        if text is not None:
            write_text(path, text)
        elif not sound():
            path.unlink(missing_ok=True)


def drop_page(path: Path) -> None:
    """Remove what a server sent instead of a file; with it, a resumed download would never be right."""
    if path.exists():
        with path.open("rb") as file:
            start = file.read(len(SIGNATURE))
        if not SIGNATURE.startswith(start):
            path.unlink()


def is_whole(path: Path) -> bool:
    """Say whether HDF5 opens a file, which it does not where the end is missing."""
    try:
        h5py.File(path, "r").close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    errors.run(main)
