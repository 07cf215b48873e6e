"""Output folders that are full or read-only: one line, exit code 2, nothing half-written."""

import os
import subprocess
import sys

import pytest


@pytest.fixture(params=["ro,size=1m", "size=16k"], ids=["read-only", "full"])
def bad_folder(request, tmp_path):
    """A folder on a file system that is read-only or has no room (needs root and mount)."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", request.param, "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["simulate", "fit", "probe", "report"])
def test_one_line_and_nothing_half_written(verb, bad_folder, datasets, tmp_path):
    tiny = ["data=shear_flow_tiny", f"data.root={datasets}", f"runs={bad_folder}",
            "trainer.max_steps=2"]  # fmt: skip
    arguments = {
        "simulate": ["preset=tiny", f"root={bad_folder}"],
        "fit": tiny,
        "probe": [*tiny, "controls=[statistics]", "probe=ridge"],
        "report": ["experiment=dev", "resamples=100", f"results={tmp_path}/results.jsonl", f"out={bad_folder}/report"],
    }[verb]
    if verb == "report":
        probe = [
            "data=shear_flow_tiny",
            f"data.root={datasets}",
            f"runs={tmp_path}/runs",
            "controls=[mean]",
            "probe=ridge",
        ]
        command = [sys.executable, "-m", "physrep.probe", *probe]
        subprocess.run(command, check=True, capture_output=True)
        (tmp_path / "runs" / "dev" / "results.jsonl").rename(tmp_path / "results.jsonl")
    command = [sys.executable, "-m", f"physrep.{verb}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.strip().splitlines() if line.startswith("physrep: ")]
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert len(said) == 1
    assert "Read-only file system" in said[0] or "No space left" in said[0] or "the disk has" in said[0], said
    whole = {"config.yaml", "provenance.json", "simulation.yaml", "diff.patch"}
    kept = [p for p in bad_folder.rglob("*") if p.is_file() and p.name not in whole and "tb" not in p.parts]
    assert not [p for p in kept if p.suffix in {".hdf5", ".h5", ".ckpt", ".jsonl", ".png"} or p.name.startswith(".")], (
        kept
    )
