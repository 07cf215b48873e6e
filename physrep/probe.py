"""Score frozen encoders: how well does a probe on their embeddings estimate the physical parameters?

Probes the run of run=FOLDER, or all finished runs of the experiment, and the experiment's controls. Probes are fitted
on train, everything is chosen on valid, test is scored once. Rows go to results.jsonl; what is there is skipped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from physrep import errors
from physrep.config import build, cli, config_hash
from physrep.errors import UserError

if TYPE_CHECKING:
    from physrep.data.module import WellDataModule
    from physrep.probes.embed import Source

CONTROLS = ("mean", "statistics", "random")


def main(argv: Sequence[str]) -> None:
    """Run `python -m physrep.probe`."""
    cfg = cli(argv, base="config", doc=__doc__)
    unknown = [c for c in cfg.controls if c not in CONTROLS]
    if unknown:
        raise UserError(f"controls: no such control {unknown[0]!r}{errors.did_you_mean(unknown[0], CONTROLS)}")
    results = Path(cfg.runs) / cfg.experiment / "results.jsonl"
    made = 0
    for subject in subjects(cfg):
        made += score(subject, cfg.probe, results)
    print(f"{results}: {made} rows added" if made else f"{results}: complete already")


class Subject:
    """One thing to probe: a source of embeddings, the data it is probed on and what its rows say of it."""

    def __init__(self, source: Source, data: WellDataModule, cfg: DictConfig, run: str, step: int) -> None:
        self.source, self.data, self.cfg, self.run, self.step = source, data, cfg, run, step


def subjects(cfg: DictConfig) -> Iterator[Subject]:
    """Yield the controls of the config, then its run or the finished runs of its experiment."""
    import torch

    from physrep.objectives.base import Objective
    from physrep.probes.embed import Source, mean_source, source_code, statistics_source
    from physrep.run import digest, load, read_config

    if cfg.run is None:
        folders = sorted(p.parent for p in (Path(cfg.runs) / cfg.experiment).glob("*/config.yaml"))
    else:
        folders = [Path(cfg.run)]
    if not folders and not cfg.controls:
        raise UserError(f"{cfg.runs}/{cfg.experiment}: holds no run; train one first: python -m physrep.fit "
                        f"experiment={cfg.experiment}")  # fmt: skip
    for control in cfg.controls:
        data = build(cfg.data, seed=cfg.seed)
        if control == "random":
            torch.manual_seed(cfg.seed)
            encoder = build(cfg.encoder, channels=len(data.channels)).eval()
            code = source_code(encoder)
            mark = digest("random", OmegaConf.to_container(cfg.encoder), cfg.seed, code, torch.__version__)
            yield Subject(Source("random", cfg.choices.encoder, Objective(encoder).encode, mark), data, cfg, "", 0)
        else:
            source = mean_source() if control == "mean" else statistics_source()
            yield Subject(source, data, cfg, "", 0)
    for folder in folders:
        held = read_config(folder)
        if not (folder / "summary.json").exists():
            if cfg.run is not None:
                raise UserError(f"{folder}: is not finished; run physrep.fit with its config again")
            print(f"{folder}: not finished, skipped", file=sys.stderr)
            continue
        data = build(held.data, seed=held.seed, root=cfg.data.get("root"))
        frozen = load(folder)
        mark = digest(frozen.digest(), source_code(frozen.objective, frozen.objective.encoder))

        def encode(clip: torch.Tensor, frozen: Any = frozen) -> torch.Tensor:
            tokens: torch.Tensor = frozen.encode(clip, normalised=True)
            return tokens

        source = Source(held.choices.objective, held.choices.encoder, encode, mark)
        yield Subject(source, data, held, str(folder), frozen.step)


def score(subject: Subject, probes: DictConfig, results: Path) -> int:
    """Fit every probe on a subject that has no row yet, append the rows, and return how many."""
    from physrep.probes.embed import embed
    from physrep.results import append, make_rows, read
    from physrep.run import commit, digest

    source, data, cfg = subject.source, subject.data, subject.cfg
    if not data.scales:
        raise UserError(f"data.targets: {data.name} names no parameter to estimate; give data.targets.NAME=log10")
    data.setup("probe")
    known = {row.key for row in read(results)} if results.exists() else set()
    features: dict[str, Any] = {}
    made = 0
    for name, node in ((str(n), node) for n, node in probes.items()):
        windows = [data.frames, data.stride, data.eval_step, data.crop, data.size, data.scales]
        key = digest(source.digest, data.fingerprint, name, OmegaConf.to_container(node), source.objective,
                     windows, cfg.seed)  # fmt: skip
        if all(f"{key}/{parameter}" in known for parameter in data.scales):
            continue
        if not features:
            features = {s: embed(source, data, s, results.parent / "embeddings") for s in ("train", "valid", "test")}
        print(f"{source.objective}: {name}", file=sys.stderr, flush=True)
        predictor = build(node).fit(features["train"], features["valid"])
        test = features["test"]
        rows = make_rows(
            predictor(test), test.theta, test.trajectory,
            scales=data.scales,
            centers=data.statistics["theta_mean"], spreads=data.statistics["theta_std"],
            data=data.name, objective=source.objective, encoder=source.encoder, probe=name, seed=cfg.seed,
            split="test", run=subject.run, config=config_hash(cfg), commit=commit(), fingerprint=data.fingerprint,
            step=subject.step, chosen=predictor.chosen, key=key,
        )  # fmt: skip
        made += append(results, rows)
    return made


if __name__ == "__main__":
    errors.run(main)
