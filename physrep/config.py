"""Compose, check and build configurations: files of conf/, a command line, and signatures as their schema.

base < groups < experiment < command line: the `groups:` of a base file name files conf/<group>/<choice>.yaml that fill
`cfg.<group>`, an experiment is a named composition, and `a.b=value` has the last word.  Which keys and types a node
with `_target_` takes is read from the target's source without importing it: a mistake comes back before torch loads.
"""

from __future__ import annotations

import ast
import copy
import difflib
import functools
import hashlib
import inspect
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from physrep.errors import UserError, did_you_mean
from physrep.signatures import SCALARS, find, import_target, kind_of, prefixes_of, read_signature, signature_of

Key = tuple[str, ...]

RESERVED = {"_target_", "_partial_"}
NOT_RUNS = {  # keys that change no weight of a run
    "runs", "run", "experiment", "dry_run", "allow", "choices", "probe", "controls", "sweep",
    "labels", "layers", "encoder.recompute",
    "checkpoint_every", "keep",
    "data.root", "data.num_workers", "data.eval_step",
}  # fmt: skip
OPTIONS = {
    "--help": "this page; after group=choice, all keys of that choice",
    "--list": "the choices of every group, or of the one named next",
    "--cfg": "print the resolved configuration and stop",
    "--dry-run": "try everything once, quickly, and stop",
}


class Layer(NamedTuple):
    """What one file says, in its place in the configuration."""

    where: str  # "conf/encoder/conv_tiny.yaml: "; empty for the command line
    content: dict[str, Any]


# --- Composing


def compose(argv: Sequence[str], base: str = "config") -> DictConfig:
    """Compose conf/<base>.yaml, its groups, the experiment and the command line, and check it all; raises UserError."""
    held, origins = _layered(argv, base)
    cfg = OmegaConf.create(held)
    check(cfg, origins)
    return cfg


def _layered(argv: Sequence[str], base: str) -> tuple[dict[str, Any], list[tuple[Key, str]]]:
    """Return a composition in plain containers, not yet checked, and which file set which key; raises UserError."""
    bottom = _base(base)
    groups = bottom.content.pop("groups", {})
    pairs = [_pair(argument) for argument in argv]
    experiment = _experiment(dict(pairs).get("experiment", bottom.content.get("experiment")), composes=bool(groups))
    choices = {group: (choice, bottom.where) for group, choice in groups.items()}
    for group, choice in experiment.content.pop("groups", {}).items():
        if group not in groups:
            raise UserError(f"{experiment.where}groups.{group}: no such group{did_you_mean(group, groups)}")
        choices[group] = (choice, experiment.where)
    choices |= {group: (choice, "") for group, choice in pairs if group in groups}
    changes = [(key, value, experiment.where) for key, value in _leaves(experiment.content)]
    changes += [(k, v, "") for name, value in pairs if name not in groups for k, v in _leaves(value, _key(name))]
    preset = {key: value for key, value, _ in changes}.get(("preset",), bottom.content.get("preset"))

    layers, chosen = [bottom], dict[str, Any]()
    for group, (choice, where) in choices.items():
        if choice is None and groups[group] is not None:
            raise UserError(f"{where}{group}=null: choose one of {', '.join(sorted(_files(f'conf/{group}')))}")
        many = isinstance(groups[group], list)
        names = [str(name) for name in (choice if many and isinstance(choice, list) else [choice]) if name is not None]
        chosen[group] = names if many else next(iter(names), None)
        if many and choice is not None:
            layers.append(Layer(where, {group: {}}))
        for name in names:
            for file, content in _choice(group, name, where, preset):
                layers.append(Layer(file, {group: {name: content} if many else content}))

    held: dict[str, Any] = {}
    for layer in layers:
        held = _merged(held, layer.content, layer.where)
    origins = [(key, layer.where) for layer in layers for key, _ in _leaves(layer.content)]
    told = {group: chosen[group] for group, (_, where) in choices.items() if not where}  # by the command line
    for key, value, where in changes:
        if where and _left_out(key, told):
            continue
        _admit(held, key, value, where)
        _set(held, key, value, where)
        origins.append((key, where))
    if groups:
        held["choices"] = chosen
    return held, origins


def _left_out(key: Key, told: Mapping[str, Any]) -> bool:
    """Say whether a key is of a choice, such as a probe, that the command line has `told` its group to do without.

    An experiment's are dropped unchecked.
    """
    names = told.get(key[0])
    return isinstance(names, list) and len(key) > 1 and key[1] not in names and key[1] in _files(f"conf/{key[0]}")


def _experiment(name: Any, composes: bool) -> Layer:
    """Read an experiment; `dev` needs no file, and a base without groups only asks that there is one."""
    files = _files("experiments")
    if name is None or (name == "dev" and name not in files):
        return Layer("", {})
    if name not in files:
        raise UserError(f"experiments/{name}.yaml: no such experiment{did_you_mean(str(name), [*files, 'dev'])}")
    return _read(files[name]) if composes else Layer("", {})


def _choice(group: str, name: str, where: str, preset: Any) -> list[Layer]:
    """Read a choice: the files that it derives from (`base:`), the most general first, then itself, then its preset."""
    files, chain = _files(f"conf/{group}"), list[Layer]()
    parent: Any = name
    while parent is not None:
        if parent not in files:
            problem = "one value at a time here" if "," in parent else f"no such choice{did_you_mean(parent, files)}"
            raise UserError(f"{where}{group}={parent}: {problem}")
        chain.insert(0, _read(files[parent]))
        where, parent = chain[0].where, chain[0].content.pop("base", None)
        if where in [layer.where for layer in chain[1:]]:
            raise UserError(f"{where}base: the file derives from itself")
    presets = [Layer(file, content.pop("presets", {})) for file, content in chain]
    known = {each for layer in presets for each in layer.content}
    if known and preset is not None and preset not in known:
        raise UserError(f"{chain[-1].where}preset={preset}: no such preset{did_you_mean(str(preset), known)}")
    return chain + [Layer(file, content[preset]) for file, content in presets if preset in content]


def _admit(cfg: Any, key: Key, value: Any, where: str) -> None:
    """Refuse a change through an interpolation and, outside of targets, of an unknown key or to another type."""
    inside, old = False, cfg
    for depth, part in enumerate(key):
        if isinstance(old, str) and "${" in old:
            node = re.fullmatch(r"\$\{(\w[\w.\[\]]*)\}", old)
            mend = f"set {_dotted(_key(node[1]) + key[depth:])}" if node else "set it there"
            raise UserError(f"{where}{_dotted(key)}: {_dotted(key[:depth])} is {old}; {mend}")
        inside = inside or (isinstance(old, dict) and "_target_" in old)
        members = _members(old)
        if part not in members:
            if inside:
                return  # for the signature to judge
            raise UserError(f"{where}{_dotted(key[: depth + 1])}: no such key{_hint(part, members, cfg)}")
        old = members[part]
    texts = [each for each in (old, value) if isinstance(each, str)]
    free = inside or old is None or old == "???" or any("${" in text for text in texts) or key == ("preset",)
    if not free and kind_of(value) not in SCALARS.get(kind_of(old), kind_of(old)).split():
        raise UserError(f"{where}{_dotted(key)}={_show(value)}: expected {kind_of(old)}, got {kind_of(value)}")


def _set(held: Any, key: Key, value: Any, where: str) -> None:
    """Set what lies under a key, with the mappings on the way; UserError where a list has no such place."""
    for depth, part in enumerate(key):
        if isinstance(held, list) and part not in _members(held):
            name = _dotted(key[:depth])
            raise UserError(f"{where}{_dotted(key)}: {name} has {len(held)} values; give all anew: {name}=[...]")
        place: Any = int(part) if isinstance(held, list) else part
        if depth == len(key) - 1:
            held[place] = _merged(_members(held).get(part), value, where, key)
            return
        if not isinstance(_members(held).get(part), (dict, list)):
            held[place] = {}
        held = held[place]


def _merged(under: Any, over: Any, where: str, key: Key = ()) -> Any:
    """Return a mapping with another laid over it, nested ones key by key; anything else replaces what was there.

    Raises UserError for a mapping over an interpolation, of which it would hide the rest.
    """
    if not isinstance(over, dict):
        return over
    if isinstance(under, str) and "${" in under:
        raise UserError(f"{where}{_dotted(key)}: is {under}; set what that names, or all of it anew under another key")
    under = under if isinstance(under, dict) else {}
    return under | {name: _merged(under.get(name), value, where, (*key, str(name))) for name, value in over.items()}


def _pair(argument: str) -> tuple[str, Any]:
    """Split `key=value` and read the value as YAML."""
    name, equals, text = argument.partition("=")
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+|\[\d+\])*", name):
        raise UserError(f"{argument}: expected key=value, such as seed=1 or encoder.depth=4")
    return name, _plain(_told(f"{argument}: ", OmegaConf.from_dotlist, [f"value={text}"]))["value"]


def home() -> Path:
    """Return where conf/ and experiments/ of the wheel or of the checkout lie."""
    package = Path(__file__).resolve().parent
    return package if (package / "conf").is_dir() else package.parent


def _files(folder: str) -> dict[str, Path]:
    """Return the YAML files of a folder by name: the current directory's before the checkout's or the wheel's."""
    folders = [root / folder for root in (home(), Path.cwd())]
    nested = {each.parent.name: each for folder in folders for each in folder.glob("*/config.yaml")}
    return nested | {each.stem: each for folder in folders for each in folder.glob("*.yaml")}


def _base(name: str) -> Layer:
    return _read(home() / "conf" / f"{name}.yaml")


def _read(file: Path) -> Layer:
    where = f"{file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file}: "
    return Layer(where, copy.deepcopy(_load(file, file.stat().st_mtime_ns, where)))


@functools.cache  # a sweep reads the same files for every run
def _load(file: Path, written: int, where: str) -> dict[str, Any]:
    content = _told(where, OmegaConf.load, file)
    if not isinstance(content, DictConfig):
        raise UserError(f"{where}expected a mapping of keys to values")
    loaded: dict[str, Any] = _plain(content)
    return loaded


def _told(where: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a function of OmegaConf; what it complains of becomes one line."""
    try:
        return function(*args, **options)
    except yaml.MarkedYAMLError as error:
        mark = error.context_mark if "flow" in str(error.context) else error.problem_mark  # the bracket left open
        if function is OmegaConf.load and mark:
            where = f"{where.removesuffix(': ')}:{mark.line + 1}: "
        raise UserError(f"{where}not YAML: {error.problem or error.context}") from None
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise UserError(f"{where}{str(error).splitlines()[0]}") from None


# --- Checking and building


def check(cfg: DictConfig, origins: Sequence[tuple[Key, str]] = ()) -> None:
    """Hold every node with a `_target_` against the target's signature; `origins` says which file set which key.

    Raises UserError for a missing or unresolvable value and for a target, key or type that is not allowed.
    """
    raw = _plain(cfg)
    try:
        resolved = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from None
    values = dict(_targets(resolved))
    for key, node in _targets(raw):
        at = {name: _origin((*key, name), origins) + _dotted((*key, name)) for name in node}
        target = str(node["_target_"])
        signature = signature_of(target, prefixes_of(cfg.get("allow")), at["_target_"])
        for name, value in values[key].items():
            if name in signature:
                signature[name].hold(value, f"{at[name]}={_show(value)}")
            elif name not in RESERVED and "**" not in signature:
                raise UserError(f"{at[name]}: no such key of {target}{_hint(name, signature, raw)}")


def build(node: Mapping[str, Any] | DictConfig, **given: Any) -> Any:
    """Import and call the `_target_` of a node, its nested nodes first, with `given` arguments besides the node's own.

    Arguments are resolved plain containers; `_partial_: true` makes a functools.partial.  Packages beside our own are
    allowed by the key `allow` at the root of the configuration that the node is part of.  Raises UserError, also for
    what the target refuses and for a value of the node that is given; only `root` (where data lie) gives way.
    """
    node = node if isinstance(node, DictConfig) else OmegaConf.create(dict(node))
    root, target, prefix = node._get_root(), str(node["_target_"]), f"{node._get_full_key('')}.".lstrip(".")
    allow = root.get("allow") if isinstance(root, DictConfig) and root is not node else None
    source = target, prefixes_of(allow), f"{prefix}_target_"
    signature, made = signature_of(*source), import_target(*source)
    for name, value in _plain(node).items():
        if name in given and name != "root" and value is not None:
            mend = "remove it and set seed=" if name == "seed" else "remove it"
            raise UserError(f"{prefix}{name}: is set by physrep itself; {mend}")
    arguments = {str(name): _built(node, name) for name in node if name not in RESERVED | given.keys()} | given
    if node.get("_partial_"):
        return functools.partial(made, **arguments)
    for name, parameter in signature.items():
        if parameter.default is None and name not in arguments:
            raise UserError(f"{prefix}{name}: {target} needs a value")
    try:
        return made(**arguments)
    except _refusals() as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{prefix[:-1]}: {target}: {said}".removeprefix(": ")) from error


def _refusals() -> tuple[type[Exception], ...]:
    """Return what a constructor raises for a value out of range; Lightning's own error only where it is loaded."""
    lightning = sys.modules.get("lightning.fabric.utilities.exceptions")
    ours = TypeError, ValueError, IndexError, ZeroDivisionError
    others = RuntimeError, ModuleNotFoundError  # torch's for sizes below 0, Lightning's for a precision not installed
    return *ours, *others, *([lightning.MisconfigurationException] if lightning else [])


def _built(node: Any, name: Any) -> Any:
    value = _told(f"{node._get_full_key(name)}: ", node.__getitem__, name)
    if isinstance(value, DictConfig):
        return build(value) if "_target_" in value else {each: _built(value, each) for each in value}
    return [_built(value, index) for index in range(len(value))] if isinstance(value, ListConfig) else value


# --- Names and differences


def config_hash(cfg: DictConfig) -> str:
    """Return 8 hex digits of what shapes a run's weights in its resolved configuration."""
    leaves = {_dotted(key): value for key, value in _leaves(_plain(cfg, resolve=True)) if _shapes(key)}
    text = json.dumps(leaves, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _shapes(key: Key) -> bool:
    """Whether a key has a say in a run's weights."""
    return not any(_dotted(key[:length]) in NOT_RUNS for length in range(1, len(key) + 1))


def run_name(cfg: DictConfig, base: str = "config") -> str:
    """Name a run by its choices, its seed and what else the command line changed, in characters safe for a folder."""
    if cfg.get("run"):
        return str(cfg.run)
    names = [cfg.choices[group] for group in ("data", "objective", "encoder") if cfg.choices.get(group)]
    suffix = [_safe(change) for change in changes(cfg, base).values()]
    suffix = suffix if len("".join(suffix)) + len(suffix) <= 80 else [config_hash(cfg)]
    return "-".join([*map(_safe, names), f"seed{cfg.seed}", *suffix])


def changes(cfg: DictConfig, base: str = "config") -> dict[str, str]:
    """Return what shapes a run beside its choices, experiment and seed: `noise=0.3` by key, as short as it is clear."""
    given = {**cfg.choices, **{key: cfg[key] for key in ("experiment", "preset", "seed", "allow") if key in cfg}}
    usual, _ = _layered([f"{key}={_show(_plain(value))}" for key, value in given.items()], base)
    before, after = (dict(_leaves(each)) for each in (usual, _plain(cfg)))
    changed = [key for key in sorted(after) if _shapes(key) and before.get(key, ...) != after[key]]
    return {_dotted(key): f"{_short(key, after)}={_show(after[key])}" for key in changed}


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=+-]+", "_", text).replace("=_", "=").strip("_")


def _short(key: Key, keys: Iterable[Key]) -> str:
    """Return the last part of a key, or as many as tell it from the other keys."""
    tails = (key[-length:] for length in range(1, len(key)))
    return _dotted(next((tail for tail in tails if sum(each[-len(tail) :] == tail for each in keys) == 1), key))


def diff(old: Mapping[str, Any] | DictConfig, new: Mapping[str, Any] | DictConfig) -> list[str]:
    """Return one line "key: old -> new" for every value that shapes a run and in which two configurations differ."""
    before, after = (dict(_leaves(_plain(each, resolve=True))) for each in (old, new))
    keys = [key for key in sorted({*before, *after}) if _shapes(key) and before.get(key, ...) != after.get(key, ...)]
    shown = [[_show(side[key]) if key in side else "(none)" for side in (before, after)] for key in keys]
    return [f"{_dotted(key)}: {' -> '.join(pair)}" for key, pair in zip(keys, shown, strict=True)]


def grid(argv: Sequence[str]) -> list[list[str]]:
    """Expand `seed=0,1 lr=1e-3,1e-4` to one command line per combination; a bracket or a quoted text is one value."""
    axes = []
    for argument in argv:
        name, equals, text = argument.partition("=")
        try:  # YAML knows what a comma inside of brackets or quotes is
            nodes = yaml.compose(f"[{text}]").value
        except yaml.YAMLError:
            nodes = []
        values = [text[node.start_mark.index - 1 : node.end_mark.index - 1] for node in nodes]
        axes.append([f"{name}{equals}{value}" for value in values] if len(values) > 1 else [argument])
    return [list(combination) for combination in itertools.product(*axes)]


# --- The command line


def cli(argv: Sequence[str], base: str = "config", doc: str | None = None) -> DictConfig:
    """Return the checked configuration of a command line; `--help`, `--list` and `--cfg` print and exit instead."""
    bottom = _base(base)
    known = [option for option in OPTIONS if option != "--dry-run" or "dry_run" in bottom.content]
    options = ["--help" if argument == "-h" else argument for argument in argv if argument.startswith("-")]
    rest = [argument for argument in argv if not argument.startswith("-")]
    for option in options:
        if option not in known:
            raise UserError(f"{option}: no such option{did_you_mean(option, known)}")
    if "--help" in options:
        named = [argument for argument in rest if argument.partition("=")[0] in bottom.content.get("groups", {})]
        print(_keys(named, base) if named else _help(base, bottom.content, known, doc))
    elif "--list" in options:
        print(_list(bottom.content, [argument for argument in rest if "=" not in argument]))
    else:
        cfg = compose([*rest, *(["dry_run=true"] if "--dry-run" in options else [])], base)
        if "--cfg" not in options:
            return cfg
        print(OmegaConf.to_yaml(cfg, resolve=True), end="")
    raise SystemExit(0)


def _help(base: str, content: dict[str, Any], known: Sequence[str], doc: str | None) -> str:
    """Write the page of a command: its groups, its keys as the base file has them with their comments, and examples."""
    groups = content.get("groups", {})
    choices = {group: sorted(_files(f"conf/{group}")) for group in groups}
    text = (home() / "conf" / f"{base}.yaml").read_text()
    lines = [line for line in text.splitlines() if re.match(r"(?!groups:)[\w-]+:", line)]
    other = [f"{group}={name}" for group, names in choices.items() for name in names if name not in groups[group]]
    script = Path(sys.argv[0])
    command = f"python -m physrep.{script.parent.name if script.stem == '__main__' else script.stem}"
    page = [inspect.cleandoc(doc), ""] if doc else []
    if groups:
        page.append("Groups; group=choice takes conf/<group>/<choice>.yaml")
        page += [f"  {f'{group}={_show(groups[group])}':<32} of {', '.join(choices[group])}" for group in groups]
    page += ["Keys; a.b=value reaches into a mapping, a.b[0]=value into a list, and values are YAML"]
    page += [f"  {re.sub(': +', '=', line, count=1)}" for line in lines]
    page += ["Options", *(f"  {option:<10} {OPTIONS[option]}" for option in known), "Examples"]
    page += [f"  {command} {argument} --help" for argument in other[:1]]
    page += [f"  {' '.join([command, *other[:1]])} --cfg"]
    page += [f"  {command} --list {group}" for group in list(groups)[:1]]
    return "\n".join(page)


def _keys(named: Sequence[str], base: str) -> str:
    """Write every key of the classes that some choices name, with its value there and what it takes."""
    cfg, page = compose(named, base), []
    for key, node in _targets(_plain(cfg)):
        if key[0] not in {argument.partition("=")[0] for argument in named}:
            continue
        target = str(node["_target_"])
        page.append(f"{_dotted(key)}: {target}")
        for name, parameter in signature_of(target, prefixes_of(cfg.allow), _dotted(key)).items():
            if name == "**":
                continue
            usual = ast.unparse(parameter.default) if parameter.default else "(told by the data)"
            kind = f"  {ast.unparse(parameter.annotation.code)}" if parameter.annotation else ""
            page.append(f"  {_dotted((*key, name))}={_show(node[name]) if name in node else usual}{kind}")
    return "\n".join(page)


def _list(content: dict[str, Any], wanted: Sequence[str]) -> str:
    """Write the choices of groups, each with the first comment of its file."""
    folders = {group: f"conf/{group}" for group in content.get("groups", {})}
    if folders and "experiment" in content:
        folders["experiment"] = "experiments"
    page = []
    for group in wanted or folders:
        if group not in folders:
            raise UserError(f"--list {group}: no such group{did_you_mean(group, folders)}")
        page.append(f"{group}:")
        for name, file in sorted(_files(folders[group]).items()):
            comments = [line.strip("# ") for line in file.read_text().splitlines() if line.startswith("#")]
            page.append(f"  {name:<20} {''.join(comments[:1])}".rstrip())
    return "\n".join(page)


# --- Keys and values


def _plain(cfg: Any, resolve: bool = False) -> Any:
    return OmegaConf.to_container(cfg, resolve=resolve) if OmegaConf.is_config(cfg) else cfg


def _key(text: str) -> Key:
    return tuple(re.findall(r"[^.\[\]]+", text))


def _dotted(key: Key) -> str:
    return "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in key).lstrip(".")


def _show(value: Any) -> str:
    """Write a value as YAML in one line."""
    return value if isinstance(value, str) else json.dumps(value, default=str).replace('"', "")


def _members(value: Any) -> dict[str, Any]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {str(name): member for name, member in items}


def _leaves(value: Any, key: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Yield what a nested mapping holds, a list or an empty mapping as one value."""
    if isinstance(value, dict) and (value or not key):
        for name, inner in value.items():
            yield from _leaves(inner, (*key, str(name)))
    else:
        yield key, value


def _targets(value: Any, key: Key = ()) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Yield the nodes that have a `_target_`, the outer ones first."""
    if isinstance(value, dict) and "_target_" in value:
        yield key, value
    for name, member in _members(value).items():
        yield from _targets(member, (*key, name))


def _origin(key: Key, origins: Sequence[tuple[Key, str]]) -> str:
    """Return what last set a key, something in it, or something around it."""
    related = (where for known, where in reversed(origins) if all(map(str.__eq__, known, key)))
    return next(related, "")


def _hint(word: str, known: Iterable[str], cfg: Any) -> str:
    """Suggest a near name in the same place, else where the configuration has this very name."""
    names = sorted({*known} - {"**"})
    if not difflib.get_close_matches(word, names, cutoff=0.5):
        keys: set[Key] = {(name,) for name in cfg}
        for place, node in _targets(cfg):
            keys |= {(*place, name) for name in read_signature(find(str(node["_target_"]))) or ()}
        if elsewhere := sorted(_dotted(key) for key in keys if key[-1] == word):
            return f"; did you mean {' or '.join(elsewhere[:2])}?"
    return did_you_mean(word, names)
