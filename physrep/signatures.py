"""Signatures of dotted paths, read from source without importing it, and what YAML value an annotation takes."""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import importlib.util
import inspect
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from physrep.errors import UserError, did_you_mean

ALLOWED = ("physrep.", "torch.", "lightning.", "timm.")
SCALARS = {"int": "int", "float": "int float", "str": "str", "bool": "bool", "Path": "str", "PathLike": "str"}
SEQUENCES = {"list", "List", "tuple", "Tuple", "Sequence", "Iterable", "Collection"}
MAPPINGS = {"dict", "Dict", "Mapping", "MutableMapping"}
PLAIN = {*SCALARS, *SEQUENCES, *MAPPINGS, "Any", "object", "None", "Literal"}


class Source(NamedTuple):
    """A piece of code, an ast node, and the names of the module that it stands in."""

    names: dict[str, Any]
    code: Any

    def at(self, code: Any) -> Source:
        """Return another piece of the same module."""
        return Source(self.names, code)

    @property
    def name(self) -> str:
        """The dotted name that the code is, calls or subscripts."""
        inner = {ast.Subscript: "value", ast.Call: "func"}.get(type(self.code))
        return ast.unparse(getattr(self.code, inner) if inner else self.code)

    @property
    def head(self) -> str:
        """The last part of the name."""
        return self.name.rpartition(".")[2]

    @property
    def items(self) -> list[Source]:
        """What stands in the brackets of a subscript."""
        index = self.code.slice if isinstance(self.code, ast.Subscript) else ast.Tuple([])
        return [self.at(each) for each in (index.elts if isinstance(index, ast.Tuple) else [index])]


class Parameter(NamedTuple):
    """One argument as written; without a default it is required."""

    annotation: Source | None
    default: ast.AST | None

    def hold(self, value: Any, where: str) -> None:
        """Raise UserError where the annotation refuses the value; one that cannot be read refuses nothing."""
        if self.annotation is None or (value is None and self.default and ast.unparse(self.default) == "None"):
            return
        if not any(_fits(value, kind) for kind in _alternatives(self.annotation)):  # the first is most often plain
            names = [name for kind in _alternatives(self.annotation) for name in _spell(kind)]
            near = difflib.get_close_matches(str(value), [name.strip("'") for name in names if name[0] == "'"])
            expected = f"expected {' or '.join(dict.fromkeys(names))}, got {kind_of(value)}"
            raise UserError(f"{where}: {f'no such value{did_you_mean(str(value), near)}' if near else expected}")


OPEN = {"**": Parameter(None, ast.Constant(...))}  # in a signature that takes any other name too


def prefixes_of(allow: Iterable[str] | None) -> tuple[str, ...]:
    """Return the prefixes that a target may have, those of `allow` besides our own."""
    return (*ALLOWED, *(f"{prefix.rstrip('.')}." for prefix in allow or ()))


def _permit(name: str, prefixes: tuple[str, ...], where: str) -> None:
    if not f"{name}.".startswith(prefixes):
        mend = f"name its package in allow=[{name.partition('.')[0]}.]"
        raise UserError(f"{where}: {name} is not allowed, only {', '.join(prefixes)}; {mend}")


def import_target(target: str, prefixes: tuple[str, ...], where: str) -> Any:
    """Import what a dotted path names; neither it nor a module on the way may come from elsewhere (torch.os.system)."""
    path, found = "", None
    for part in target.split("."):
        path = f"{path}.{part}".lstrip(".")
        try:
            inside = found is not None and (hasattr(found, part) or not isinstance(found, ModuleType))
            found = getattr(found, part) if inside else importlib.import_module(path)
        except (ImportError, AttributeError, SyntaxError) as error:
            raise UserError(f"{where}: cannot import {target}: {error}") from None
        home = found.__name__ if isinstance(found, ModuleType) else getattr(found, "__module__", None)
        _permit(home or target, prefixes, where)
    if not callable(found):
        raise UserError(f"{where}: {target} is neither a class nor a function")
    return found


@functools.cache
def signature_of(target: str, prefixes: tuple[str, ...], where: str) -> dict[str, Parameter]:
    """Return the parameters of a target by name, from its source; only where that does not tell is it imported."""
    _permit(target, prefixes, where)
    declared = read_signature(find(target))
    if declared is not None:
        return declared
    path, _, name = target.rpartition(".")
    names = _module(path)
    if names and not {name, "*", "__getattr__"} & names.keys():
        hint = did_you_mean(name, difflib.get_close_matches(name, names))
        raise UserError(f"{where}: {path} has no {name}{hint}")
    try:
        named = inspect.signature(import_target(target, prefixes, where)).parameters.values()
    except (TypeError, ValueError):  # compiled code that does not tell either
        return OPEN
    parameters = {
        each.name: Parameter(None, None if each.default is each.empty else ast.Constant(each.default))
        for each in named
        if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    }
    return parameters | (OPEN if len(parameters) < len(named) else {})


def find(path: str, seen: tuple[str, ...] = ()) -> Source | None:
    """Follow a dotted path through imports to the code that defines it; None where the source does not tell."""
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        if path not in seen and (names := _module(".".join(parts[:cut]))) is not None:
            return _resolve(names, ".".join(parts[cut:]), (*seen, path))
    return None


def _resolve(names: dict[str, Any], dotted: str, seen: tuple[str, ...] = ()) -> Source | None:
    head, _, rest = dotted.partition(".")
    bound = names.get(head)
    if isinstance(bound, ast.AST):
        return None if rest else Source(names, bound)
    paths = [f"{bound}.{rest}".rstrip(".")] if bound else [f"{origin}.{dotted}" for origin in names.get("*", ())]
    return next((found for path in paths if (found := find(path, seen))), None)


@functools.cache
def _module(path: str) -> dict[str, Any] | None:
    """Read what a module's names stand for: code, the dotted path of an import, under "*" the modules imported whole.

    None where there is no such source.
    """
    top, *rest = path.split(".")
    spec = importlib.util.find_spec(top)
    folders = [Path(folder, *rest) for folder in (spec and spec.submodule_search_locations) or ()]
    files = [file for folder in folders for file in (folder / "__init__.py", folder.with_name(f"{folder.name}.py"))]
    files += [Path(spec.origin)] if spec and spec.origin and not rest else []
    file = next((file for file in files if file.suffix == ".py" and file.is_file()), None)
    if file is None:
        return None
    package = [top, *rest] if file.name == "__init__.py" else [top, *rest][:-1]
    names: dict[str, Any] = {}
    try:
        body = ast.parse(file.read_bytes(), file.name).body
    except SyntaxError:  # Python says so on import
        return None
    for statement in _statements(body):
        match statement:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                names[name] = statement
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                names.setdefault(name, value)
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                names.setdefault(name, value)
            case ast.Import(names=aliases):
                for alias in aliases:
                    first = alias.name.partition(".")[0]
                    names.setdefault(alias.asname or first, alias.name if alias.asname else first)
            case ast.ImportFrom(module=source, names=aliases, level=level):
                origin = ".".join(filter(None, [*package[: len(package) - level + 1 if level else 0], source]))
                for alias in aliases:
                    if alias.name == "*":
                        names.setdefault("*", []).append(origin)
                    else:
                        names.setdefault(alias.asname or alias.name, f"{origin}.{alias.name}")
    return names


def _statements(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    for statement in body:
        yield statement
        if isinstance(statement, (ast.If, ast.Try, ast.ExceptHandler)):
            yield from _statements(ast.iter_child_nodes(statement))


def read_signature(found: Source | None) -> dict[str, Parameter] | None:
    """Read what a function or class takes; a `**plan` that goes on to `super().__init__` is what the parent takes."""
    if found is None or not isinstance(found.code, (ast.FunctionDef, ast.ClassDef)):
        return None
    if isinstance(found.code, ast.FunctionDef):
        return _arguments(found) | (OPEN if found.code.args.kwarg else {})
    inits = [each for each in found.code.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
    if not inits:
        parent = _inherited(found)
        is_dataclass = any(found.at(each).head == "dataclass" for each in found.code.decorator_list)
        return parent if parent is None or not is_dataclass else parent | _fields(found)
    init = inits[0]
    own = dict(itertools.islice(_arguments(found.at(init)).items(), 1, None))
    if not init.args.kwarg:
        return own
    for call in (each for each in ast.walk(init) if isinstance(each, ast.Call)):
        passes = f"**{init.args.kwarg.arg}" in map(ast.unparse, call.keywords)
        if passes and re.fullmatch(r"super\(.*\)\.__init__", ast.unparse(call.func)):
            parent = _inherited(found)
            filled = list(parent or ())[: sum(not isinstance(each, ast.Starred) for each in call.args)]
            filled += [each.arg for each in call.keywords if each.arg]
            inherited = {name: each for name, each in (parent or {}).items() if name not in filled}
            return None if parent is None else inherited | own
    return own | OPEN


def _inherited(found: Source) -> dict[str, Parameter] | None:
    """Return what the first base takes that takes anything; None where a base's source does not tell."""
    for base in map(found.at, found.code.bases):
        if base.head not in {"object", "ABC", "Generic", "Protocol"}:
            parent = read_signature(_resolve(base.names, base.name))
            if parent is None or parent:
                return parent
    return {}


def _arguments(function: Source) -> dict[str, Parameter]:
    given = function.code.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    defaults = [*given.defaults, *given.kw_defaults]
    kinds = [function.at(each.annotation) if each.annotation else None for each in named]
    pairs = zip(kinds, [None] * (len(named) - len(defaults)) + defaults, strict=True)
    return {each.arg: Parameter(*pair) for each, pair in zip(named, pairs, strict=True)}


def _fields(dataclass: Source) -> dict[str, Parameter]:
    fields = [each for each in dataclass.code.body if isinstance(each, ast.AnnAssign)]
    fields = [each for each in fields if dataclass.at(each.annotation).head != "ClassVar"]
    return {ast.unparse(each.target): Parameter(dataclass.at(each.annotation), each.value) for each in fields}


def _alternatives(kind: Source) -> Iterator[Source]:
    """Yield the members of a union, through quotes and aliases."""
    code, parts = kind.code, list[Source]()
    if isinstance(code, ast.Constant) and isinstance(code.value, str):
        parts = [kind.at(ast.parse(code.value, mode="eval").body)]
    elif isinstance(code, ast.BinOp):
        parts = [kind.at(code.left), kind.at(code.right)]
    elif kind.head in {"Optional", "Union"}:
        parts = [*kind.items, *([kind.at(ast.Constant(None))] if kind.head == "Optional" else [])]
    elif kind.head not in PLAIN and (alias := _resolve(kind.names, kind.name)) and isinstance(alias.code, ast.expr):
        parts = [alias]
    for part in parts:
        yield from _alternatives(part)
    if not parts:
        yield kind


def _fits(value: Any, kind: Source) -> bool:
    """Tell whether a value of YAML suits one member of an annotation; what cannot be told suits."""

    def all_fit(values: Iterable[Any], wanted: Source) -> bool:
        return all(any(_fits(each, one) for one in _alternatives(wanted)) for each in values)

    head, items = kind.head, kind.items
    if head in {"Any", "object"} or (isinstance(value, dict) and "_target_" in value):
        fits = True
    elif head == "None":
        fits = value is None
    elif head == "Literal":
        fits = repr(value) in [each.name for each in items]
    elif head in SCALARS:
        fits = kind_of(value) in SCALARS[head].split()
    elif head in MAPPINGS:
        fits = isinstance(value, dict) and (not items or all_fit(value.values(), items[1]))
    elif head in {"tuple", "Tuple"} and items and items[-1].name != "...":
        fits = isinstance(value, list) and len(value) == len(items) and all(map(all_fit, zip(value), items))
    elif head in SEQUENCES:
        fits = isinstance(value, list) and (not items or all_fit(value, items[0]))
    else:
        made = _resolve(kind.names, kind.name)
        fits = head != "Callable" and not (made and isinstance(made.code, ast.ClassDef))
    return fits


def _spell(kind: Source) -> list[str]:
    if kind.head == "Literal":
        return [each.name for each in kind.items]
    name = ast.unparse(kind.code)
    return ["null" if name == "None" else name if kind.head in PLAIN else f"a _target_ that makes {name}"]


def kind_of(value: Any) -> str:
    """Name the type of a value of YAML."""
    return "null" if value is None else type(value).__name__
