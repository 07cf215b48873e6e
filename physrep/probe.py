"""Score frozen encoders: how well does a probe on their embeddings estimate the physical parameters?

Probes the run of run=FOLDER, or all finished runs of the experiment, and the experiment's controls. Probes are fitted
on train, everything is chosen on valid, test is scored once. Rows go to results.jsonl; what is there is skipped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from physrep import errors
from physrep.config import build, cli, config_hash
from physrep.errors import UserError

if TYPE_CHECKING:
    from physrep.data.module import WellDataModule
    from physrep.probes.embed import Source

CONTROLS = ("mean", "statistics")


def main(argv: Sequence[str]) -> None:
    """Run `python -m physrep.probe`."""
    cfg = cli(argv, base="config", doc=__doc__)
    unknown = [c for c in cfg.controls if c not in CONTROLS]
    if unknown:
        raise UserError(f"controls: no such control {unknown[0]!r}{errors.did_you_mean(unknown[0], CONTROLS)}")
    folder = Path(cfg.run).parent if cfg.run else Path(cfg.runs) / cfg.experiment
    changes = [a.partition("=")[0] for a in argv if a.startswith("data.")]
    results, made = folder / "results.jsonl", 0
    for subject in subjects(cfg, folder, changes):
        made += score(subject, cfg, results)
    print(f"{results}: {made} rows added" if made else f"{results}: complete already")


@dataclass(frozen=True)
class Subject:
    """One thing to probe: a source of embeddings, the data it is probed on and what its rows say of it."""

    source: Source
    data: WellDataModule
    cfg: DictConfig
    run: str = ""
    step: int = 0


def subjects(cfg: DictConfig, folder: Path, changes: Sequence[str]) -> Iterator[Subject]:
    """Yield the controls and the runs: that of the config or the finished ones in the experiment's folder.

    Controls are made for the data of every run, or of the config where there is no run. What the
    command line says of the data (`changes`) holds for all of them.
    """
    from physrep.run import read_config

    held = {}
    for run in [Path(cfg.run)] if cfg.run else sorted(p.parent for p in folder.glob("*/config.yaml")):
        config = read_config(run, cfg.allow)
        for key in changes:
            OmegaConf.update(config, key, OmegaConf.select(cfg, key), force_add=True)
        if (run / "summary.json").exists():
            held[run] = config
        elif cfg.run:
            raise UserError(f"{run}: is not finished; run physrep.fit with its config again")
        else:
            print(f"{run}: not finished, skipped", file=sys.stderr)
    if not held and not cfg.controls:
        raise UserError(f"{folder}: holds no finished run; train one first: python -m physrep.fit "
                        f"experiment={cfg.experiment}")  # fmt: skip
    made: list[Any] = []
    for config in list(held.values()) or [cfg]:
        for control in cfg.controls:
            of = [control, config.data]
            if of not in made:
                made.append(of)
                yield control_subject(control, config)
    for run, config in held.items():
        yield run_subject(run, config, cfg.allow)


def control_subject(control: str, cfg: DictConfig) -> Subject:
    """Make a control that has no encoder: predicting the mean, or hand-made statistics."""
    from physrep.probes.embed import mean_source, statistics_source

    return Subject(mean_source() if control == "mean" else statistics_source(), build(cfg.data, seed=cfg.seed), cfg)


def run_subject(run: Path, cfg: DictConfig, allow: Sequence[str]) -> Subject:
    """Take the frozen encoder of a finished run."""
    from physrep.probes.embed import Source, source_code
    from physrep.run import digest, load

    frozen = load(run, allow)
    mark = digest(frozen.digest(), source_code(frozen.objective, frozen.objective.encoder))
    encode = partial(frozen.encode, normalised=True)
    source = Source(cfg.choices.objective, cfg.choices.encoder, encode, mark, model=frozen)
    return Subject(source, build(cfg.data, seed=cfg.seed), cfg, str(run), frozen.step)


def score(subject: Subject, asked: DictConfig, results: Path) -> int:
    """Fit every probe asked for on a subject that has no row yet, append the rows, and return how many."""
    from physrep.probes.embed import embed, source_code
    from physrep.results import append, make_rows, read
    from physrep.run import commit, digest

    source, data, cfg = subject.source, subject.data, subject.cfg
    if not data.scales:
        raise UserError(f"data.targets: {data.name} names no parameter to estimate; give data.targets.NAME=log10")
    data.setup("probe")
    known = {row.key for row in read(results)} if results.exists() else set()
    protocol = [data.frames, data.stride, data.eval_step, data.crop, data.size, data.scales, data.statistics]
    features: dict[str, Any] = {}
    made = 0
    for name, node in ((str(n), node) for n, node in asked.probe.items()):
        probe = build(node)
        of = [source.objective, source.digest, data.fingerprint, protocol, cfg.seed]
        key = digest(of, name, OmegaConf.to_container(node), source_code(probe))
        if probe.needs == "clips" and source.model is None:
            print(f"{source.objective}: has no encoder to unfreeze, no {name}", file=sys.stderr)
            continue
        done = all(f"{key}/{parameter}" in known for parameter in data.scales)
        if asked.dry_run:
            counts = ", ".join(f"{len(data.windows(s, data.eval_step))} {s}" for s in ("train", "valid", "test"))
            print(f"{subject.run or source.objective}: {name} on {counts} windows, {'done' if done else 'to do'}")
        if done or asked.dry_run:
            continue
        print(f"{source.objective}: {name}", file=sys.stderr, flush=True)
        if probe.needs == "clips":
            predictor = probe.fit(source.model, data)
            predicted, test = predictor.predict("test")
        else:
            for split in ("train", "valid", "test") if not features else ():
                features[split] = embed(source, data, split, results.parent / "embeddings")
            predictor, test = probe.fit(features["train"], features["valid"]), features["test"]
            predicted = predictor(test)
        rows = make_rows(
            predicted, test.theta, test.trajectory,
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
