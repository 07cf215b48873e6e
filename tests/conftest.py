"""Small datasets in The Well's format, written by our writer from decaying travelling waves."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # two threads gain nothing on data this small and fight with the workers

from pathlib import Path

import numpy as np
import pytest

from physrep.data.well import write

COUNTS = {"train": 6, "valid": 3, "test": 3}


def waves(n: int, frames: int, shape: tuple[int, int], nu: float, seed: int) -> dict[str, np.ndarray]:
    """Fields that decay with nu: tracer, pressure and velocity, [N, T, H, W(, 2)] float32."""
    rng = np.random.default_rng(seed)
    h, w = shape
    x, y = np.arange(h)[:, None] / h, np.arange(w)[None] / w
    t = np.arange(frames)[:, None, None]
    out = {}
    for name in ("tracer", "pressure", "u", "v"):
        total = np.zeros((n, frames, h, w))
        for i in range(n):
            for k in (1, 2, 3):
                a, b, c = rng.normal(size=3)
                total[i] += np.exp(-nu * k * k * t) * (
                    a * np.sin(2 * np.pi * k * (x + 0.02 * c * t)) + b * np.sin(2 * np.pi * k * y + 6 * c)
                )
        out[name] = total.astype(np.float32)
    return {"tracer": out["tracer"], "pressure": out["pressure"], "velocity": np.stack([out["u"], out["v"]], -1)}


def write_dataset(root: Path, name: str = "shear_flow_tiny", boundaries: dict[str, str] | None = None) -> Path:
    """Write a dataset of 4 parameter pairs x (6, 3, 3) trajectories and return its folder."""
    frames, shape = 20, (16, 32)
    coords = {"x": np.arange(shape[0]) / shape[0], "y": np.arange(shape[1]) / shape[1]}
    for i, (re, sc) in enumerate([(r, s) for r in (100.0, 400.0) for s in (0.5, 2.0)]):
        for j, (split, n) in enumerate(COUNTS.items()):
            write(
                root / name / "data" / split / f"shear_flow_Reynolds_{re:g}_Schmidt_{sc:g}.hdf5",
                "shear_flow",
                waves(n, frames, shape, nu=10 / re + 0.01 * sc, seed=10 * i + j),
                {"Reynolds": re, "Schmidt": sc},
                coords,
                np.arange(frames) * 0.2,
                boundaries or {"x": "PERIODIC", "y": "PERIODIC"},
            )
    return root / name


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of datasets that tests may read but not change: holds shear_flow_tiny."""
    root = tmp_path_factory.mktemp("datasets")
    write_dataset(root)
    return root


@pytest.fixture
def walled(tmp_path: Path) -> Path:
    """A folder of datasets whose y axis ends in walls."""
    write_dataset(tmp_path, boundaries={"x": "PERIODIC", "y": "WALL"})
    return tmp_path


@pytest.fixture
def own_datasets(tmp_path: Path) -> Path:
    """A folder of datasets that the test may spoil."""
    write_dataset(tmp_path / "datasets")
    return tmp_path / "datasets"
