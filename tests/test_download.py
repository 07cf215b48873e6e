"""Downloading from The Well: into our layout, resumed, checked; the downloader is a fake that writes files."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import yaml

from physrep import download
from physrep.download import GIGABYTES
from physrep.errors import UserError

STATS = "mean: {tracer: 0.5}\nstd: {tracer: 0.1}\n"
SIZES = {"train": 2, "valid": 1, "test": 1}  # files
REGISTRY = {
    name: {"stats": f"https://well/datasets/{name}/stats.yaml"}
    | {s: [f"https://well/datasets/{name}/data/{s}/{name}_{i}.hdf5" for i in range(n)] for s, n in SIZES.items()}
    for name in ("shear_flow", "rayleigh_benard", "MHD_64")
}


def content(name: str) -> bytes:
    """What the server holds of a file."""
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        file["name"] = np.full(1000, len(name))
    return image.getvalue()


class Server:
    """The Well's downloader as far as files tell: what is there in part is continued, what is broken is sent so."""

    def __init__(self, folder: Path) -> None:
        self.WELL_REGISTRY = str(folder / "registry.yaml")
        Path(self.WELL_REGISTRY).write_text(yaml.dump(REGISTRY))
        self.broken: dict[str, bytes] = {}  # what is sent in place of a file
        self.calls: list[tuple[str, str]] = []
        self.curlrc = ""

    def well_download(self, base_path: str, dataset: str, split: str, registry_path: str) -> None:
        self.calls.append((dataset, split))
        self.curlrc = Path(os.environ["CURL_HOME"], ".curlrc").read_text()
        print("noise")
        for url in [REGISTRY[dataset]["stats"], *yaml.safe_load(Path(registry_path).read_text())[dataset][split]]:
            path = Path(base_path, *url.split("/")[3:])
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = STATS.encode() if path.suffix == ".yaml" else content(path.name)
            there = path.read_bytes() if path.exists() else b""
            path.write_bytes(there + self.broken.get(path.name, whole)[len(there) :])


@pytest.fixture
def server(tmp_path, monkeypatch):
    made = Server(tmp_path)
    monkeypatch.setattr(download, "downloader", lambda: made)
    monkeypatch.setitem(GIGABYTES, "shear_flow", 5e-5)
    return made


@pytest.fixture
def root(tmp_path):
    return tmp_path / "a b" / "data"


def files(root, name="shear_flow", splits=tuple(SIZES)):
    return {root / name / "data" / s / f"{name}_{i}.hdf5" for s in splits for i in range(SIZES[s])}


def test_all_splits_in_our_layout(server, root, capsys):
    download.main(["data=shear_flow", f"data.root={root}"])
    assert {path for path in root.rglob("*") if path.is_file()} == files(root) | {root / "shear_flow" / "stats.yaml"}
    assert all(path.read_bytes() == content(path.name) for path in files(root))
    assert server.calls == [("shear_flow", s) for s in ("train", "valid", "test")]
    first, *middle, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{root}/shear_flow: 0 MB, ") and first.endswith("GB of disk free")
    assert middle == [f"{root}/shear_flow/data/{s}: {n} files" for s, n in SIZES.items()]
    assert last == f"next: python -m physrep.verify data=shear_flow 'data.root={root}'"


def test_one_split_into_the_folder_of_the_environment(server, root, monkeypatch, capsys):
    monkeypatch.setenv("THE_WELL_DATA_DIR", str(root))
    download.main(["split=valid"])
    assert set(root.rglob("*.hdf5")) == files(root, splits=["valid"])
    assert capsys.readouterr().out.endswith("next: python -m physrep.verify data=shear_flow\n")


def test_a_dataset_without_a_class_of_its_own(server, root, capsys, monkeypatch):
    monkeypatch.setattr("physrep.files.free_bytes", lambda _: 20e9)
    download.main(["data=well", "data.name=MHD_64", "split=test", f"data.root={root}"])
    assert files(root, "MHD_64", ["test"]) == set(root.rglob("*.hdf5"))
    assert f"{root}/MHD_64: 7.3 GB, " in capsys.readouterr().out


def test_what_is_there_in_part_goes_on_and_what_is_whole_stays(server, root, capsys):
    first, second = sorted(files(root, splits=["train"]))
    first.parent.mkdir(parents=True)
    first.write_bytes(content(first.name)[:100])
    second.write_bytes(content(second.name) + b"more")
    download.main(["data=shear_flow", f"data.root={root}"])
    assert first.read_bytes() == content(first.name) and second.read_bytes() == content(second.name) + b"more"
    assert "MB there" in capsys.readouterr().out


@pytest.mark.parametrize("sent", [b"<html>503</html>", content("x")[:500], b""], ids=["page", "part", "nothing"])
def test_files_that_did_not_arrive_are_told_and_the_same_command_mends(server, root, sent):
    server.broken = {"shear_flow_1.hdf5": sent}
    command = ["data=shear_flow", f"data.root={root}"]
    with pytest.raises(UserError, match=r"train: 1 of 2 files did not arrive whole \(shear_flow_1.hdf5\); the same "):
        download.main(command)
    assert server.calls == [("shear_flow", "train")]
    kept = root / "shear_flow" / "data" / "train" / "shear_flow_1.hdf5"
    assert not kept.exists() if b"html" in sent else kept.read_bytes() == sent
    if b"html" in sent:
        kept.write_bytes(sent)  # as a killed download leaves it
    server.broken = {}
    download.main(command)
    assert all(path.read_bytes() == content(path.name) for path in files(root))


def test_the_disk_must_hold_what_is_missing(server, root, monkeypatch, capsys):
    monkeypatch.setitem(GIGABYTES, "shear_flow", 100.0)
    monkeypatch.setattr("physrep.files.free_bytes", lambda _: 20e9)
    command = ["data=shear_flow", f"data.root={root}"]
    with pytest.raises(UserError, match=r"shear_flow: needs 100.0 GB and the disk has 20.0 GB free; set data.root="):
        download.main(command)
    assert capsys.readouterr().out == f"{root}/shear_flow: 100.0 GB, 20.0 GB of disk free\n"
    assert not server.calls and not root.exists()
    download.main([*command, "split=valid"])
    monkeypatch.setattr("physrep.files.free_bytes", lambda _: 20e3)
    download.main([*command, "split=valid"])  # all there
    path = min(files(root, splits=["valid"]))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"needs 10\.0 GB and the disk has 0 MB free"):
        download.main([*command, "split=valid"])
    monkeypatch.setitem(GIGABYTES, "shear_flow", 1e-8 * (path.stat().st_size + 19e3))
    download.main([*command, "split=valid"])  # what is there in part counts


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["data=shear_flow_small"],
            r"^data.name=shear_flow_small: The Well has no such dataset; did you mean shear_flow",
        ),
        (["data=well", "data.name=mhd"], r"^data.name=mhd: .*; there is MHD_64, rayleigh_benard, shear_flow$"),
        (["split=val"], r"^split=val: no such split; did you mean valid\?$"),
        (["data=shear_flw"], r"^data=shear_flw: no such choice; did you mean shear_flow or "),
    ],
)
def test_mistakes_are_one_line(server, root, arguments, said):
    with pytest.raises(UserError, match=said):
        download.main([*arguments, f"data.root={root}"])
    assert not root.exists() and not server.calls


def test_what_must_be_installed_is_told(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "the_well", None)
        patch.delitem(sys.modules, "the_well.utils", raising=False)
        patch.delitem(sys.modules, "the_well.utils.download", raising=False)
        with pytest.raises(
            UserError, match=r"^the_well: not installed; pip install 'physrep\[well\]' \(in a checkout: "
        ):
            download.main(["data=shear_flow"])
    monkeypatch.setattr(download.importlib, "import_module", lambda _: SimpleNamespace())
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="^curl: not found"):
        download.main(["data=shear_flow"])


@pytest.mark.parametrize(
    "had", [None, "fingerprint: f00d\nmean: {tracer: 1}\nstd: {tracer: 1}\n", "mean: [", "mean: 1"]
)
def test_statistics_that_are_there_are_kept(server, root, had):
    path = root / "shear_flow" / "stats.yaml"
    if had is not None:
        path.parent.mkdir(parents=True)
        path.write_text(had)
    download.main(["data=shear_flow", f"data.root={root}", "split=test"])
    assert path.read_text() == (had if had and "std" in had else STATS)


def test_a_page_in_place_of_the_statistics_is_dropped(server, root):
    server.broken = {"stats.yaml": b"<html>503: mean</html>"}
    download.main(["data=shear_flow", f"data.root={root}", "split=test"])
    assert [path.name for path in (root / "shear_flow").iterdir()] == ["data"]


def test_curl_refuses_pages_of_errors_and_keeps_its_users_settings(server, root, monkeypatch, tmp_path):
    (tmp_path / ".curlrc").write_text("proxy = here\n")
    for before in (None, str(tmp_path)):
        monkeypatch.setenv("CURL_HOME", str(tmp_path)) if before else monkeypatch.delenv("CURL_HOME", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        download.main(["data=shear_flow", f"data.root={root}", "split=test"])
        assert server.curlrc == "fail\nproxy = here\n" and os.environ.get("CURL_HOME") == before


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_package_itself_from_files(root, tmp_path, monkeypatch):
    package = pytest.importorskip("the_well.utils.download")
    assert set(REGISTRY) < set(yaml.safe_load(Path(package.WELL_REGISTRY).read_text()))
    server = Server(tmp_path)
    remote = tmp_path / "remote"
    remote.mkdir()
    (remote / ".curlrc").touch()
    monkeypatch.setenv("CURL_HOME", str(remote))
    for split in SIZES:
        server.well_download(str(remote), "shear_flow", split, server.WELL_REGISTRY)
    (tmp_path / "local.yaml").write_text(yaml.dump(REGISTRY).replace("https://well", f"file://{remote}"))
    monkeypatch.setattr(package, "WELL_REGISTRY", str(tmp_path / "local.yaml"))
    part = root / "shear_flow" / "data" / "train" / "shear_flow_0.hdf5"
    part.parent.mkdir(parents=True)
    part.write_bytes(content(part.name)[:1000])
    monkeypatch.setitem(GIGABYTES, "shear_flow", 5e-5)
    download.main(["data=shear_flow", f"data.root={root}"])
    assert {path for path in root.rglob("*") if path.is_file()} == files(root) | {root / "shear_flow" / "stats.yaml"}
    assert all(path.read_bytes() == content(path.name) for path in files(root))


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("target", ["data", "verify", "show"])
def test_make(target):
    def make(*words):
        environment = {key: value for key, value in os.environ.items() if key not in {"DATA", "MAKEFLAGS", "MAKELEVEL"}}
        return subprocess.run(["make", "-n", *words], capture_output=True, text=True, check=False, env=environment)

    module = {"data": "download"}.get(target, target)
    assert make(target, "DATA=MHD").stdout.splitlines()[-1] == f".venv/bin/python -m physrep.{module} data=MHD"
    without = make(target)
    assert without.returncode == 2 and not without.stdout
    (said,) = without.stderr.splitlines()
    assert f"DATA is missing; say which of conf/data, as in: make {target} DATA=" in said
    assert make("help").returncode == 0
