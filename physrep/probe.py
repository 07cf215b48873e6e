"""Score frozen encoders: how well does a probe on their embeddings estimate the physical parameters?

Probes the run of run=FOLDER, or all finished runs of the experiment, and the experiment's controls. Probes are fitted
on train, everything is chosen on valid, test is scored once. Rows go to results.jsonl; what is there is skipped.
labels=[0.01,0.1,1] tells probes the parameters of so many of the trajectories, layers=all probes every layer, too.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from physrep import errors, memory
from physrep.config import build, changes, cli, config_hash
from physrep.errors import UserError

if TYPE_CHECKING:
    from physrep.data.module import WellDataModule
    from physrep.probes.embed import Source
    from physrep.probes.features import Features

CONTROLS = ("mean", "statistics")
STATED = {"data.split", "data.labels"}  # rows have fields of their own for these
PLACES = {"data.root", "data.num_workers", "data.batch_size", "data.cache", "data.name"}  # make no other windows


def main(argv: Sequence[str]) -> None:
    """Run `python -m physrep.probe`."""
    cfg = cli(argv, base="config", doc=__doc__)
    told = [a.partition("=")[0] for a in argv if a.startswith("data.")]
    if "data.labels" in told:
        raise UserError("data.labels: is for training; say labels=[...] for the shares of labels that probes are told")
    if wrong := [share for share in cfg.labels if not isinstance(share, (int, float)) or not 0 < share <= 1]:
        raise UserError(f"labels: {wrong[0]} is no share of the trajectories; give more than 0 and at most 1")
    for key in ("probe", "labels"):
        if not cfg[key]:
            raise UserError(f"{key}: is empty, so there is nothing to do; leave it out for the usual")
    if unknown := [c for c in cfg.controls if c not in CONTROLS]:
        raise UserError(f"controls: no such control {unknown[0]!r}{errors.did_you_mean(unknown[0], CONTROLS)}")
    if cfg.layers is not None and not any(build(node).needs == "pooled" for node in cfg.probe.values()):
        raise UserError(f"layers: {', '.join(cfg.probe)} reads no layers; add ridge: probe=[ridge,...]")
    memory.keep()
    folder = Path(cfg.run).parent if cfg.run else Path(cfg.runs) / cfg.experiment
    from physrep.results import read

    results, made = folder / "results.jsonl", 0
    known = {row.key for row in read(results)} if results.exists() else set()
    failed: UserError | None = None
    for subject in subjects(cfg, folder, told, chosen(argv)):
        try:
            made += score(subject(), cfg, known, results, argv)
        except UserError as error:
            if failed:
                errors.say(failed)
            failed = error
    if failed:
        raise failed
    if not cfg.dry_run:
        print(f"{results}: {made} rows added" if made else f"{results}: complete already")


def chosen(argv: Sequence[str]) -> dict[str, str]:
    """Return the data, objective, encoder and seed that a command line names: only runs that have them count."""
    named = (argument.partition("=")[::2] for argument in argv)
    return {key: value for key, value in named if key in ("data", "objective", "encoder", "seed")}


def setting_of(name: str, argv: Sequence[str]) -> str:
    """Return a probe's name and the options that the command line gives it beside the experiment's."""
    start = f"probe.{name}."
    return ", ".join([name, *(argument.removeprefix(start) for argument in argv if argument.startswith(start))])


@dataclass(frozen=True)
class Subject:
    """One thing to probe: a source of embeddings, the data it is probed on and what its rows say of it."""

    source: Source
    data: WellDataModule
    cfg: DictConfig
    run: str = ""
    step: int = 0
    cost: dict[str, Any] = field(default_factory=dict)
    variant: str = ""
    shares: tuple[float, ...] = ()  # of labels, where the run has been told them: no others make sense


def subjects(
    cfg: DictConfig, folder: Path, told: Sequence[str], named: Mapping[str, str]
) -> Iterator[Callable[[], Subject]]:
    """Yield what makes the controls and the runs: that of the config or the finished ones in the experiment's folder.

    Of the latter those of the choices that the command line has `named`. Controls are made for the data of every run,
    or of the config where there is no run. What the command line says of the data (`told`) holds for all of them.
    """
    from physrep.run import read_config

    held = {}
    for run in [Path(cfg.run)] if cfg.run else sorted(p.parent for p in folder.glob("*/config.yaml")):
        config = read_config(run, cfg.allow)
        has = {**config.choices, "seed": config.seed}
        if not cfg.run and any(str(has.get(key)) != value for key, value in named.items()):
            continue
        split = config.data.get("split", "well")
        if "data.split" in told and split != cfg.data.split:
            raise UserError(f"data.split: {run} was trained with {split} and has seen what {cfg.data.split} tests on; "
                            f"train another with data.split={cfg.data.split}")  # fmt: skip
        for key in told:
            OmegaConf.update(config, key, OmegaConf.select(cfg, key), force_add=True)
        if (run / "summary.json").exists():
            held[run] = config
        elif cfg.run:
            raise UserError(f"{run}: is not finished; run physrep.fit with its config again")
        else:
            print(f"{run}: not finished, skipped", file=sys.stderr)
    if not held and not cfg.controls:
        those = "".join(f" {key}={value}" for key, value in named.items())
        raise UserError(f"{folder}: holds no finished run{those and ' of'}{those}; train one first: python -m "
                        f"physrep.fit experiment={cfg.experiment}{those}")  # fmt: skip
    made: list[Any] = []
    for config in list(held.values()) or [cfg]:
        for control in cfg.controls:
            of = [control, config.data]
            if of not in made:
                made.append(of)
                yield partial(control_subject, control, config, told)
    for run, config in held.items():
        yield partial(run_subject, run, config, cfg.allow, told)


def control_subject(control: str, cfg: DictConfig, told: Sequence[str] = ()) -> Subject:
    """Make a control that has no encoder: predicting the mean, or hand-made statistics."""
    from physrep.probes.embed import mean_source, statistics_source

    source = mean_source() if control == "mean" else statistics_source()
    return Subject(source, build(cfg.data, seed=cfg.seed), cfg, variant=variant(cfg, told, "data."))


def variant(cfg: DictConfig, told: Sequence[str] = (), group: str = "") -> str:
    """Say what a run was given beside its choices, in a group of keys, and what rows have no field of their own for.

    Keys of the data that its probes are `told` count also where they make no other run.
    """
    given = {key: f"{key.removeprefix('data.')}={OmegaConf.select(cfg, key)}" for key in told if key not in PLACES}
    given |= changes(cfg)
    return ", ".join(said for key, said in sorted(given.items()) if key.startswith(group) and key not in STATED)


def run_subject(run: Path, cfg: DictConfig, allow: Sequence[str], told: Sequence[str] = ()) -> Subject:
    """Take the frozen encoder of a finished run."""
    from physrep.probes.embed import Source, source_code
    from physrep.run import digest, load

    frozen = load(run, allow)
    mark = digest(frozen.digest(), source_code(frozen.objective, frozen.objective.encoder, "encoders"))
    encode = partial(frozen.encode, normalised=True)
    source = Source(cfg.choices.objective, cfg.choices.encoder, encode, mark, model=frozen)
    cost = json.loads((run / "summary.json").read_text()).get("cost")
    if cost is None:
        raise UserError(f"{run}: older code has finished it, and did not note the cost; delete it and train it again")
    shares = (float(cfg.data.get("labels", 1)),) if frozen.objective.told else ()
    data = build(cfg.data, seed=cfg.seed)
    now = data.meta()
    for name in ("fingerprint", "mean", "std"):
        if now[name] != frozen.meta[name]:
            raise UserError(f"{run}: was trained on other data than {data.folder} now holds ({name} differs); "
                            "train it again")  # fmt: skip
    return Subject(source, data, cfg, str(run), frozen.step, cost, variant(cfg, told), shares)


def score(subject: Subject, asked: DictConfig, known: set[str], results: Path, argv: Sequence[str]) -> int:
    """Fit every probe asked for on a subject that has no row of a `known` key, append the rows; return how many."""
    source, data, cfg = subject.source, subject.data, subject.cfg
    if not data.scales:
        raise UserError(f"data.targets: {data.name} names no parameter to estimate; give data.targets.NAME=log10")
    data.setup("probe")
    source, made = replace(source, layers=tuple(layers(source, asked.layers))), 0
    subject = replace(subject, source=source)
    for share in subject.shares or asked.labels:
        data.labels = share
        made += _score(subject, asked, known, results, argv)
    data.labels = cfg.data.get("labels", 1.0)
    for layer in source.layers:
        made += _score(replace(subject, source=replace(source, layer=layer)), asked, known, results, argv)
    return made


def layers(source: Source, asked: str | int | Sequence[int] | None) -> list[str]:
    """Return the layers of a run's encoder that are asked for; UserError for one that it has not."""
    if asked is None or source.model is None:
        return []
    found = source.model.layers()
    given = [asked] if isinstance(asked, (str, int)) else asked
    wanted = found if asked == "all" else [str(layer) for layer in given]
    if wrong := [layer for layer in wanted if layer not in found]:
        raise UserError(f"layers: {source.encoder} has layers 1 to {len(found)}, not {wrong[0]}; give some, or all")
    return [*dict.fromkeys(wanted)]


def tuned_on(cfg: DictConfig, labels: float) -> WellDataModule:
    """Build the sealed data that an unfrozen encoder is tuned on, with so many labels told.

    Noise and dropped channels are pretraining's: objectives that had none are tuned alike.
    """
    data: WellDataModule = build(cfg.data, seed=cfg.seed)
    data.labels, data.sealed = labels, True
    data.noise = data.dropout = 0.0
    return data


def _score(subject: Subject, asked: DictConfig, known: set[str], results: Path, argv: Sequence[str]) -> int:
    from physrep.data.splits import SPLITS
    from physrep.metrics import between_within, effective_rank
    from physrep.probes.embed import embed, source_code
    from physrep.probes.features import plane
    from physrep.results import append, make_rows
    from physrep.run import commit, digest
    from physrep.tables import share

    source, data, cfg = subject.source, subject.data, subject.cfg
    protocol = [
        data.split,
        data.labels,
        data.frames,
        data.stride,
        data.eval_step,
        data.crop,
        data.size,
        data.normalise,
        data.scales,
    ]
    said = " ".join(filter(None, [source.objective, source.layer and f"layer {source.layer}"]))
    said += f", {share(data.labels)} of labels" if data.labels < 1 else ""

    @cache
    def features(split: str) -> Features:
        data.files(split)  # not test's while it is sealed
        return embed(source, data, split, results.parent / "embeddings")

    made = 0
    for name, node in ((str(n), node) for n, node in asked.probe.items()):
        probe = build(node)
        setting = digest(OmegaConf.to_container(node), source_code(probe, "probes/heads.py", "probes/features.py"))
        of = [source.objective, source.of(source.layer), data.fingerprint, protocol, data.statistics, cfg.seed]
        key = digest(of, config_hash(cfg) if subject.run else "", name, setting)
        if probe.needs == "clips" and source.model is None:
            print(f"{source.objective}: has no encoder to unfreeze, no {name}", file=sys.stderr)
            continue
        if source.layer and probe.needs != "pooled":
            continue
        done = all(f"{key}/{parameter}" in known for parameter in data.scales)
        if asked.dry_run:
            counts = ", ".join(f"{len(data.windows(s, data.eval_step))} {s}" for s in SPLITS)
            of_run = subject.run and f"{subject.run}, "
            print(f"{of_run}{said}: {name} on {counts} windows, {'done' if done else 'to do'}")
        if done or asked.dry_run:
            continue
        print(f"{said}: {name}", file=sys.stderr, flush=True)
        shared, starts, data.sealed = data.shared, data.recurring("test"), True
        about: dict[str, Any] = {"plane": None, "space": {}, "cost": subject.cost}
        if probe.needs == "clips":
            own = tuned_on(cfg, data.labels)
            predictor = probe.fit(source.model, own)
            own.sealed = data.sealed = False
            predicted, test = predictor.predict("test")
            about["cost"] = {**subject.cost, name: predictor.cost}
        else:
            predictor = probe.fit(*(features(split).of(data.labelled(split).tolist()) for split in SPLITS[:2]))
            data.sealed = False
            test = features("test")
            predicted = predictor(test)
            spread = zip(("between", "within"), between_within(test.pooled, test.trajectory), strict=True)
            space = {"rank": effective_rank(test.pooled), **dict(spread)}
            about["space"] = {name: float(f"{x:.6g}") for name, x in space.items() if math.isfinite(x)}
            about["plane"] = plane(features("train"), test)
        rows = make_rows(
            predicted, test.theta, test.trajectory,
            scales=data.scales,
            centers=data.statistics["theta_mean"], spreads=data.statistics["theta_std"],
            data=data.name, objective=source.objective, encoder=source.encoder, variant=subject.variant,
            probe=setting_of(name, argv), seed=cfg.seed,
            splits=data.split, split="test", shared=shared, starts=starts, labels=float(data.labels),
            layer=source.layer, **about, run=subject.run, config=config_hash(cfg), commit=commit(),
            fingerprint=data.fingerprint, step=subject.step, chosen=predictor.chosen, key=key, setting=setting,
        )  # fmt: skip
        made += append(results, rows)
    return made


if __name__ == "__main__":
    errors.run(main)
