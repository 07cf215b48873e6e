from __future__ import annotations

import copy
import functools
import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from physrep import config, signatures
from physrep.config import _merged, build, check, cli, compose, config_hash, diff, grid, run_name
from physrep.errors import UserError

ROOT = Path(__file__).resolve().parents[1]

TOY = {
    "__init__.py": "from toy.alias import Net as Renamed\nfrom .starred import *\n",
    "alias.py": "from .models import Net, Plan as Other\nfrom os import system\nimport os\n",
    "starred.py": "from toy import *\n\ndef star(x: int = 1, **rest): return x, rest\n",
    "unread.py": """
        raise AssertionError("imported")
        class Quiet:
            def __init__(self, depth: int = 1): ...
        """,
    "models.py": """
        from __future__ import annotations
        import typing as t
        from collections.abc import Callable, Mapping, Sequence
        from dataclasses import dataclass, field
        from pathlib import Path
        from typing import ClassVar, Literal, Optional, Union

        Mode = Literal["fast", "slow"]
        Level: t.TypeAlias = Union[Mode, int]

        class Base:
            def __init__(self, net, lr: float = 1e-3, steps: int = 10, *, fixed: int = 0, betas: tuple[float] = (1,)):
                self.net, self.lr, self.steps, self.fixed, self.betas = net, lr, steps, fixed, betas

        class Plan(Base):
            def __init__(self, net: Net, sim: float = 2.0, **plan):
                super().__init__(net, fixed=3, **plan)
                self.sim = sim

        class Heir(Plan):
            pass

        class Loose:
            def __init__(self, a: int = 0, **rest):
                self.rest = dict(rest)

        class Net:
            def __init__(
                self,
                depth: int = 1,
                width: "int" = 2,
                rate: float = 0.5,
                name: str | None = None,
                flag: bool = False,
                mode: Mode = "fast",
                level: Optional[Level] = None,
                sizes: Sequence[int] = (1, 2),
                grid: t.List[Sequence[int]] = (),
                pair: tuple[int, str] = (1, "a"),
                many: tuple[int, ...] = (),
                table: Mapping[str, float] | None = None,
                path: Path = "x",
                act: Callable[[], None] | None = None,
                other: Net | None = None,
                nets: list[Net] = (),
                lazy: int = None,
                free=None,
                made: type[Net] | None = None,
            ):
                self.__dict__.update(locals())

        @dataclass
        class Head:
            known: ClassVar[int] = 3
            size: int
            layers: list[int] = field(default_factory=list)

        @dataclass
        class Tall(Head):
            tall: bool = True

        def double(x: int, by: float = 2): return x * by
        def fails(): raise ValueError("its own\\nand more")
        def refuses(kind: str):
            from lightning.pytorch.utilities.exceptions import MisconfigurationException
            raise {"type": TypeError, "index": IndexError, "lightning": MisconfigurationException}[kind]("no")
        def breaks(): raise OSError("not the value's fault")
        """,
}

CONF = {
    "conf/config.yaml": """
        # The base.
        groups:
          data: waves
          encoder: small
          objective: plan
          probe: [ridge, deep]
        seed: 0  # of everything
        rate: 0.5
        experiment: dev
        run: null
        runs: runs
        dry_run: false
        allow: [toy.]
        log: {every: 10, tags: [a, b]}
        """,
    "conf/data/waves.yaml": "# Waves.\n_target_: toy.models.Net\nname: waves\n",
    "conf/data/winds.yaml": "_target_: toy.models.Net\nname: winds\n",
    "conf/encoder/small.yaml": "# A small one.\n_target_: toy.models.Net\ndepth: 2\ntable: {x: 1}\nsizes: [4, 5, 6]\n",
    "conf/encoder/deep.yaml": "base: small\ndepth: 9\ntable: {y: 2}\n",
    "conf/encoder/deeper.yaml": "base: deep\nwidth: 7\n",
    "conf/encoder/loop.yaml": "base: pool\n",
    "conf/encoder/pool.yaml": "base: loop\n",
    "conf/encoder/orphan.yaml": "base: smal\n",
    "conf/encoder/wrong.yaml": "base: small\ndepht: 3\n",
    "conf/encoder/mistyped.yaml": "_target_: toy.models.Net\nwidth: wide\n",
    "conf/objective/plan.yaml": "_target_: toy.models.Plan\nnet: ${encoder}\nsim: 1\n",
    "conf/objective/quiet.yaml": "_target_: toy.unread.Quiet\n",
    "conf/probe/ridge.yaml": "_target_: toy.models.Head\nsize: 1\n",
    "conf/probe/deep.yaml": "_target_: toy.models.Tall\nsize: 2\n",
    "conf/probe/wide.yaml": "_target_: toy.models.Head\nsize: 3\n",
    "conf/open.yaml": "groups: {data: null, encoder: small}\nseed: 0\nallow: [toy.]\n",
    "conf/bare.yaml": "experiment: demo\nresults: null\nresamples: 100\n",
    "conf/sim.yaml": "groups: {system: flow}\npreset: small\nallow: [toy.]\n",
    "conf/system/flow.yaml": """
        _target_: toy.models.Net
        depth: 1
        presets:
          small: {depth: 2, table: {x: 1}}
          large: {depth: 3, wdith: 4}
        """,
    "conf/system/fall.yaml": "base: flow\nwidth: 8\npresets: {small: {width: 9}, tall: {depth: 5}}\n",
    "experiments/demo.yaml": """
        groups: {encoder: deep, probe: wide}
        seed: 5
        encoder: {width: 3}
        log: {every: 20}
        """,
    "experiments/paper/config.yaml": "objective: {lr: 1}\n",
    "experiments/slip.yaml": "groups: {encodr: deep}\n",
    "experiments/typo.yaml": "objective: {simm: 1}\n",
    "experiments/blank.yaml": "groups: {data: null}\n",
    "experiments/lost.yaml": "sed: 1\n",
    "experiments/several.yaml": "probe: {deep: {size: 7}}\n",
    "experiments/other.yaml": "groups: {probe: [wide]}\nprobe: {deep: {size: 7}}\n",
    "experiments/through.yaml": "objective: {net: {depth: 3}}\n",
}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        indent = re.match(r"\n( +)", text)
        lines = text.strip("\n").replace(f"\n{indent[1]}", "\n").lstrip() if indent else text
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(lines)


@pytest.fixture(scope="module", autouse=True)
def toy(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("site")
    write(folder / "toy", TOY)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with conf/ and experiments/ as the current directory, and no others in sight."""
    write(tmp_path, CONF)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "__file__", str(tmp_path / "physrep/config.py"))
    return tmp_path


def error(*argv: str, base: str = "config", call: Callable[..., Any] = compose) -> str:
    with pytest.raises(UserError) as caught:
        call(argv, base)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def node(text: str) -> DictConfig:
    cfg = OmegaConf.create({"allow": ["toy."], "it": OmegaConf.create(text)})
    return cfg.it


# Composing


def test_compose_reads_base_and_groups_and_keeps_the_choices():
    cfg = compose([])
    assert cfg.data == {"_target_": "toy.models.Net", "name": "waves"}
    assert list(cfg.probe) == ["ridge", "deep"]
    assert cfg.choices == {"data": "waves", "encoder": "small", "objective": "plan", "probe": ["ridge", "deep"]}
    assert "groups" not in cfg
    assert cfg.log == {"every": 10, "tags": ["a", "b"]}


def test_a_choice_derives_from_others_of_its_group():
    cfg = compose(["encoder=deeper"])
    assert cfg.encoder == {
        "_target_": "toy.models.Net", "depth": 9, "width": 7, "table": {"x": 1, "y": 2}, "sizes": [4, 5, 6]
    }  # fmt: skip


def test_order_is_base_groups_experiment_command_line():
    assert compose(["experiment=demo"]).seed == 5
    assert compose(["experiment=demo", "seed=7"]).seed == 7
    assert compose(["seed=7", "experiment=demo"]).seed == 7
    cfg = compose(["experiment=demo"])
    assert (cfg.encoder.depth, cfg.encoder.width, cfg.log.every, cfg.choices.encoder) == (9, 3, 20, "deep")
    assert cfg.choices.probe == ["wide"] and list(cfg.probe) == ["wide"]
    cfg = compose(["experiment=demo", "encoder=small", "encoder.width=4"])
    assert (cfg.encoder.depth, cfg.encoder.width, cfg.choices.encoder) == (2, 4, "small")
    assert compose(["experiment=paper"]).objective.lr == 1  # experiments/paper/config.yaml


@pytest.mark.parametrize(
    ("argument", "names"),
    [("probe=wide", ["wide"]), ("probe=[wide,ridge]", ["wide", "ridge"]), ("probe=[]", [])],
)
def test_a_group_of_many(argument, names):
    cfg = compose([argument])
    assert cfg.choices.probe == names and list(cfg.probe) == names


def test_what_an_experiment_says_of_a_choice_that_the_command_line_drops_goes_with_it():
    assert compose(["experiment=several"]).probe.deep.size == 7
    assert list(compose(["experiment=several", "probe=ridge"]).probe) == ["ridge"]
    with pytest.raises(UserError, match=r"other.yaml: probe.deep: no such key"):
        compose(["experiment=other"])
    with pytest.raises(UserError, match=r"^probe.deep: no such key"):
        compose(["experiment=several", "probe=ridge", "probe.deep.size=1"])


def test_null_leaves_a_group_out_where_the_base_does():
    for argv in ([], ["data=null"], ["data=waves", "data=null"]):
        cfg = compose(argv, "open")
        assert "data" not in cfg and cfg.choices.data is None
    assert compose(["data=waves"], "open").data.name == "waves"


@pytest.mark.parametrize(
    ("argument", "key", "value"),
    [
        ("encoder.sizes[1]=9", "encoder.sizes", [4, 9, 6]),
        ("log.tags[0]=z", "log.tags", ["z", "b"]),
        ("encoder.rate=1e-3", "encoder.rate", 1e-3),
        ("encoder.name=null", "encoder.name", None),
        ("encoder.table={z: 3}", "encoder.table", {"x": 1, "z": 3}),
        ("encoder.table.z=3", "encoder.table", {"x": 1, "z": 3}),
        ("encoder.name='1'", "encoder.name", "1"),
        ("encoder.name=a=b", "encoder.name", "a=b"),
        ("probe.deep.size=5", "probe.deep.size", 5),
        ("encoder.nets=[{_target_: toy.models.Net, depth: 4}]", "encoder.nets[0].depth", 4),
        ("rate=1", "rate", 1),
        ("encoder.depth=${seed}", "encoder.depth", 0),
        ("log.every=${seed}", "log.every", 0),
    ],
)
def test_values_of_the_command_line(argument, key, value):
    assert OmegaConf.select(compose([argument]), key) == value


def test_later_overrides_see_earlier_ones():
    cfg = compose(["encoder.nets=[{_target_: toy.models.Net}]", "encoder.nets[0].depth=3"])
    assert cfg.encoder.nets[0].depth == 3


@pytest.mark.parametrize(
    ("under", "over", "want"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"c": {"d": 3}}}, {"a": {"b": 1, "c": {"d": 3}}}),
        ({"a": {"b": 1}}, {"a": {}}, {"a": {"b": 1}}),
        ({"a": {"b": 1}}, {"a": None}, {"a": None}),
        ({"a": None}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({"a": [1, 2, 3]}, {"a": [4]}, {"a": [4]}),
        ({"a": {"b": 1}}, {"a": "${e}"}, {"a": "${e}"}),
    ],
)
def test_layers_are_laid_over_one_another(under, over, want):
    before = copy.deepcopy(under)
    assert _merged(under, over, "") == want
    assert under == before
    assert OmegaConf.to_container(OmegaConf.merge(under, over)) == want, "as OmegaConf has it"


def test_a_mapping_over_an_interpolation_is_refused():
    """OmegaConf lays it over what that names; in plain containers it would hide the rest."""
    with pytest.raises(UserError, match=r"conf/x\.yaml: a\.b: is \$\{e\}; set what that names"):
        _merged({"a": {"b": "${e}"}}, {"a": {"b": {"c": 1}}}, "conf/x.yaml: ")


def test_presets():
    assert compose([], "sim").system == {"_target_": "toy.models.Net", "depth": 2, "table": {"x": 1}}
    assert compose(["system.depth=8"], "sim").system.depth == 8
    assert compose(["preset=null"], "sim").system == {"_target_": "toy.models.Net", "depth": 1}
    assert compose(["system=fall"], "sim").system.width == 9
    assert compose(["system=fall", "preset=tall"], "sim").system == {
        "_target_": "toy.models.Net",
        "depth": 5,
        "width": 8,
    }


def test_a_base_without_groups_does_not_take_the_content_of_an_experiment():
    assert compose([], "bare") == {"experiment": "demo", "results": None, "resamples": 100}
    assert (
        error("experiment=dmeo", base="bare") == "experiments/dmeo.yaml: no such experiment; did you mean demo or dev?"
    )


def test_the_current_directory_adds_choices_and_experiments_but_no_base(place, monkeypatch):
    (place / "own").mkdir()
    monkeypatch.chdir(place / "own")
    write(place / "own", {"conf/config.yaml": "mine: true\n", "conf/encoder/mine.yaml": "_target_: toy.models.Net\n"})
    write(place / "own", {"conf/base.yaml": "mine: true\n", "experiments/mine.yaml": "seed: 8\n"})
    assert compose(["encoder=mine", "experiment=mine"]).seed == 8 and "mine" not in compose([])
    with pytest.raises(FileNotFoundError):
        compose([], "base")


def test_the_current_directory_goes_before_the_package(place, monkeypatch):
    (place / "elsewhere").mkdir()
    shutil.copytree(place / "conf", place / "elsewhere/conf")
    monkeypatch.setattr(config, "__file__", str(place / "elsewhere/physrep/config.py"))
    write(place / "elsewhere/conf", {"encoder/small.yaml": "_target_: toy.models.Net\ndepth: 50\n"})
    write(place / "elsewhere/conf", {"encoder/shipped.yaml": "# Shipped.\n_target_: toy.models.Net\ndepth: 60\n"})
    assert compose([]).encoder.depth == 2
    assert compose(["encoder=shipped"]).encoder.depth == 60
    (place / "apart").mkdir()
    monkeypatch.chdir(place / "apart")
    monkeypatch.setattr(config, "__file__", str(place / "physrep/config.py"))
    assert compose([]).encoder.depth == 2
    assert error("encoder=smal").startswith("encoder=smal: no such choice; did you mean small?")


# Mistakes


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("seed", "seed: expected key=value, such as seed=1 or encoder.depth=4"),
        ("=3", "=3: expected key=value, such as seed=1 or encoder.depth=4"),
        ("+seed=3", "+seed=3: expected key=value, such as seed=1 or encoder.depth=4"),
        ("encoder=smal", "encoder=smal: no such choice; did you mean small?"),
        ("probe=[wide,rigde]", "probe=rigde: no such choice; did you mean ridge or wide?"),
        ("data=waves,winds", "data=waves,winds: one value at a time here"),
        ("probe=wide,ridge", "probe=wide,ridge: one value at a time here"),
        ("encoder=loop", "conf/encoder/loop.yaml: base: the file derives from itself"),
        ("encoder=orphan", "conf/encoder/orphan.yaml: encoder=smal: no such choice; did you mean small?"),
        ("experiment=demi", "experiments/demi.yaml: no such experiment; did you mean demo or dev?"),
        ("experiment=slip", "experiments/slip.yaml: groups.encodr: no such group; did you mean encoder?"),
        ("experiment=lost", "experiments/lost.yaml: sed: no such key; did you mean seed?"),
        ("experiment=typo", "experiments/typo.yaml: objective.simm: no such key of toy.models.Plan; did you mean sim?"),
        (
            "experiment=through",
            "experiments/through.yaml: objective.net.depth: objective.net is ${encoder}; set encoder.depth",
        ),
        ("encodr.depth=1", "encodr: no such key; did you mean encoder?"),
        ("seeed=1", "seeed: no such key; did you mean seed?"),
        ("depth=1", "depth: no such key; did you mean data.depth or encoder.depth?"),
        ("log.evry=1", "log.evry: no such key; did you mean every?"),
        ("log.tags[5]=1", "log.tags[5]: no such key; there is 0, 1"),
        ("seed.x=1", "seed.x: no such key"),
        ("groups.data=winds", "groups: no such key; did you mean runs?"),
        ("choices.data=winds", "choices: no such key; there is"),
        ("probe.dep.size=1", "probe.dep: no such key; did you mean deep or ridge?"),
        ("encoder.depht=3", "encoder.depht: no such key of toy.models.Net; did you mean depth?"),
        ("encoder.sizes[7]=3", "encoder.sizes[7]: encoder.sizes has 3 values; give all anew: encoder.sizes=[...]"),
        ("objective.sim_coef=2", "objective.sim_coef: no such key of toy.models.Plan; did you mean sim?"),
        ("objective.fixed=2", "objective.fixed: no such key of toy.models.Plan; there is betas, lr, net, sim, steps"),
        ("objective.net.depth=5", "objective.net.depth: objective.net is ${encoder}; set encoder.depth"),
        ("encoder=wrong", "conf/encoder/wrong.yaml: encoder.depht: no such key of toy.models.Net; did you mean depth?"),
        ("encoder=mistyped", "conf/encoder/mistyped.yaml: encoder.width=wide: expected int, got str"),
        ("seed=1.5", "seed=1.5: expected int, got float"),
        ("seed=0,1", "seed=0,1: expected int, got str"),
        ("dry_run=1", "dry_run=1: expected bool, got int"),
        ("log=3", "log=3: expected dict, got int"),
        ("runs=null", "runs=null: expected str, got null"),
        ("seed=${sed}", "seed: Interpolation key 'sed' not found"),
        ("seed=???", "seed=???: expected int, got str"),
        ("run=???", "run: Missing mandatory value: run"),
        ("objective.net=${dat}", "objective.net: Interpolation key 'dat' not found"),
        ("encoder=null", "encoder=null: choose one of deep, deeper, loop, mistyped, orphan, pool, small, wrong"),
        ("probe=null", "probe=null: choose one of deep, ridge, wide"),
        ("experiment=blank", "experiments/blank.yaml: data=null: choose one of waves, winds"),
        ("run=[a", "run=[a: not YAML: "),
        ("run=${", "run=${: "),
    ],
)
def test_mistakes_are_one_line(argv, message):
    said = error(*argv.split(" "))
    assert said.startswith(message) if message.endswith((" ", "there is")) else said == message


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("conf/data/waves.yaml", "a: 1\nb: [1,\nc: 2\n", "conf/data/waves.yaml:2: not YAML: "),
        ("conf/data/waves.yaml", "a: 1\na: 2\n", "conf/data/waves.yaml:2: not YAML: found duplicate key a"),
        ("conf/data/waves.yaml", "- a\n", "conf/data/waves.yaml: expected a mapping of keys to values"),
        ("experiments/demo.yaml", "seed: 1\n\tx: 2\n", "experiments/demo.yaml:2: not YAML: "),
        ("conf/config.yaml", "seed: {a: 1", "conf/config.yaml:1: not YAML: "),
        ("conf/data/waves.yaml", "name: ${", "conf/data/waves.yaml: "),
    ],
)
def test_broken_files_are_named_with_the_line(place, name, text, message):
    (place / name).write_text(text)
    assert error("experiment=demo").startswith(message)


def test_a_missing_base_is_named():
    with pytest.raises(FileNotFoundError, match=r"conf/nothing\.yaml"):
        compose([], "nothing")


def test_presets_are_checked():
    assert error("preset=smal", base="sim") == "conf/system/flow.yaml: preset=smal: no such preset; did you mean small?"
    message = "conf/system/flow.yaml: system.wdith: no such key of toy.models.Net; did you mean width or depth?"
    assert error("preset=large", base="sim") == message


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("depth=abc", "expected int, got str"),
        ("depth=true", "expected int, got bool"),
        ("depth=null", "expected int, got null"),
        ("depth=[1]", "expected int, got list"),
        ("width=1.0", "expected int, got float"),
        ("rate=fast", "expected float, got str"),
        ("rate=false", "expected float, got bool"),
        ("name=3", "expected str or null, got int"),
        ("flag=1", "expected bool, got int"),
        ("mode=fsat", "no such value; did you mean fast?"),
        ("mode=3", "expected 'fast' or 'slow', got int"),
        ("level=slo", "no such value; did you mean slow?"),
        ("level=1.5", "expected 'fast' or 'slow' or int or null, got float"),
        ("sizes=3", "expected Sequence[int], got int"),
        ("sizes=[1, a]", "expected Sequence[int], got list"),
        ("grid=[[1], [a]]", "expected t.List[Sequence[int]], got list"),
        ("pair=[1]", "expected tuple[int, str], got list"),
        ("pair=[a, 1]", "expected tuple[int, str], got list"),
        ("many=[1, 2, x]", "expected tuple[int, ...], got list"),
        ("table={x: b}", "expected Mapping[str, float] or null, got dict"),
        ("path=1", "expected Path, got int"),
        ("act=gelu", "expected a _target_ that makes Callable[[], None] or null, got str"),
        ("other=net", "expected a _target_ that makes Net or null, got str"),
        ("nets=[net]", "expected list[Net], got list"),
    ],
)
def test_types_are_those_of_the_signature(argument, message):
    key, _, text = argument.partition("=")
    value = {"table": "{x: b}"}.get(key, text)
    shown = "{x: b}" if key == "table" else text
    cfg = compose(["encoder=small", "data=winds"])
    OmegaConf.update(cfg, f"data.{key}", OmegaConf.create(f"v: {value}").v, force_add=True)
    with pytest.raises(UserError) as caught:
        check(cfg)
    assert str(caught.value) == f"data.{key}={shown}: {message}"


@pytest.mark.parametrize(
    "argument",
    [
        "depth=3", "width=3", "rate=1", "rate=0.5", "name=null", "name=a", "flag=true", "mode=slow", "level=3",
        "level=fast", "level=null", "sizes=[]", "sizes=[1,2]", "grid=[[1,2],[3]]", "pair=[1,b]", "many=[]",
        "many=[1,2,3]", "table={x: 1, y: 0.5}", "path=a/b", "act=null", "act={_target_: torch.nn.GELU}",
        "other={_target_: toy.models.Net}", "nets=[{_target_: toy.models.Net}]", "lazy=null", "free=[1,{a: b}]",
        "made=anything", "depth={_target_: toy.models.double, x: 3}",
    ],
)  # fmt: skip
def test_types_that_fit(argument):
    compose([f"data.{argument}"])


# Targets and signatures


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("toy.models.Base", "net lr steps fixed betas"),
        ("toy.models.Plan", "lr steps betas net sim"),  # net is passed by position, fixed by name
        ("toy.models.Heir", "lr steps betas net sim"),
        ("toy.models.Loose", "a **"),
        ("toy.models.Head", "size layers"),
        ("toy.models.Tall", "size layers tall"),
        ("toy.models.double", "x by"),
        ("toy.alias.Other", "lr steps betas net sim"),
        ("toy.star", "x **"),
        ("toy.unread.Quiet", "depth"),
        ("torch.optim.SGD", "params lr momentum dampening weight_decay nesterov maximize foreach differentiable fused"),
        ("torch.nn.GELU", "approximate"),
        ("torch.nn.LayerNorm", "normalized_shape eps elementwise_affine bias device dtype"),
        ("lightning.LightningModule", ""),
    ],
)
def test_signatures_are_read_from_source(target, names, monkeypatch):
    monkeypatch.setattr(signatures, "import_target", None)
    signature = signatures.signature_of.__wrapped__(target, signatures.prefixes_of(["toy."]), "")
    assert list(signature) == names.split()


def test_signatures_agree_with_inspect():
    import inspect

    import lightning
    import torch

    classes = [lightning.Trainer, lightning.pytorch.callbacks.ModelCheckpoint, torch.optim.AdamW, torch.nn.Conv3d]
    for each in [*classes, torch.optim.lr_scheduler.OneCycleLR, lightning.seed_everything]:
        target = f"{each.__module__}.{each.__name__}"
        signature = signatures.read_signature(signatures.find(target))
        real = inspect.signature(each).parameters.values()
        assert signature is not None and list(signature) == [p.name for p in real]
        assert [p.default is None for p in signature.values()] == [p.default is p.empty for p in real]


def test_the_trainer_is_found_through_its_reexports(monkeypatch):
    monkeypatch.setattr(signatures, "import_target", None)
    trainer = "data={_target_: lightning.Trainer, %s}"
    bad = {"max_step: 3": "max_step", "precision: bf16-mixd": "precision=bf16-mixd", "max_steps: abc": "max_steps=abc"}
    said = []
    for text in bad:
        cfg = compose([])
        cfg.data = OmegaConf.create(trainer.partition("=")[2] % text)
        with pytest.raises(UserError) as caught:
            check(cfg)
        said.append(str(caught.value))
    assert said == [
        "data.max_step: no such key of lightning.Trainer; did you mean max_steps or max_time?",
        "data.precision=bf16-mixd: no such value; did you mean bf16-mixed or 16-mixed?",
        "data.max_steps=abc: expected int, got str",
    ]


def test_compiled_functions_take_any_key_and_python_behind_them_is_asked_by_inspect():
    signature = functools.partial(signatures.signature_of, prefixes=signatures.ALLOWED, where="x")
    assert list(signature("torch.randn")) == ["**"]
    by_inspect = signatures.signature_of("toy.models.Base.__init__", signatures.prefixes_of(["toy."]), "x")
    assert list(by_inspect) == ["self", "net", "lr", "steps", "fixed", "betas"]
    assert by_inspect["net"].default is None and by_inspect["lr"].default is not None


NOT_ALLOWED = "is not allowed, only physrep., torch., lightning., timm., toy.; name its package in allow="


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("os.system", f"os.system {NOT_ALLOWED}[os.]"),
        ("toyota.models.Net", f"toyota.models.Net {NOT_ALLOWED}[toyota.]"),
        ("toy.alias.os.system", f"os {NOT_ALLOWED}[os.]"),
        ("toy.alias.system", f"posix {NOT_ALLOWED}[posix.]"),
        ("toy.models.Plann", "toy.models has no Plann; did you mean Plan?"),
        ("toy.modls.Net", "cannot import toy.modls.Net: No module named 'toy.modls'"),
        (
            "toy.models.Net.nothing",
            "cannot import toy.models.Net.nothing: type object 'Net' has no attribute 'nothing'",
        ),
        ("toy.models", "toy.models is neither a class nor a function"),
        ("3", f"3 {NOT_ALLOWED}[3.]"),
    ],
)
def test_targets_are_refused_on_check_and_on_build(target, message):
    assert error(f"data._target_={target}") == f"data._target_: {message}"
    with pytest.raises(UserError) as caught:
        build(OmegaConf.create({"allow": ["toy."], "data": {"_target_": target}}).data)
    assert str(caught.value) == f"data._target_: {message}"


def test_allow_takes_package_names_and_nothing_that_merely_begins_alike():
    assert compose(["allow=[toy]"]).allow == ["toy"]
    assert error("allow=[to.]").startswith("conf/data/waves.yaml: data._target_: toy.models.Net is not allowed, only")
    assert error("allow=to.") == "allow=to.: expected list, got str"


def test_a_broken_module_of_the_users_is_one_line(toy):
    write(toy / "toy", {"broken.py": "def f(:\n", "needy.py": "import nothing_like_it\n\nclass A: ...\n"})
    assert error("data._target_=toy.broken.f").startswith("data._target_: cannot import toy.broken.f: invalid syntax")
    with pytest.raises(
        UserError, match=r"^it\._target_: cannot import toy\.needy\.A: No module named 'nothing_like_it'$"
    ):
        build(node("_target_: toy.needy.A"))


# Building


def test_build_makes_nested_nodes_first_and_passes_plain_containers():
    made = build(
        compose(["encoder.nets=[{_target_: toy.models.Net, depth: 4}]", "encoder.free={a: [1, {b: 2}]}"]).objective
    )
    assert (type(made).__name__, made.sim, made.lr, made.fixed) == ("Plan", 1, 1e-3, 3)
    assert (made.net.depth, made.net.nets[0].depth) == (2, 4)
    assert type(made.net.sizes) is list and made.net.sizes == [4, 5, 6]
    assert made.net.free == {"a": [1, {"b": 2}]} and type(made.net.free["a"]) is list
    assert type(made.net.free) is type(made.net.free["a"][1]) is type(made.net.table) is dict


def test_what_is_given_may_not_be_in_the_node_too_but_for_the_root():
    made = build(node("{_target_: toy.models.Plan, sim: 1, net: null}"), net="given", lr=3)
    assert (made.net, made.sim, made.lr) == ("given", 1, 3)
    with pytest.raises(UserError, match=r"^it\.net: is set by physrep itself; remove it$"):
        build(node("{_target_: toy.models.Plan, net: {_target_: toy.models.fails}}"), net="given")
    with pytest.raises(UserError, match=r"^it\.seed: is set by physrep itself; remove it and set seed=$"):
        build(node("{_target_: toy.models.Loose, seed: 1}"), seed=1)
    assert build(node("{_target_: toy.models.Loose, root: a}"), root="b").rest == {"root": "b"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_target_: toy.models.fails", "it: toy.models.fails: its own"),
        ("{_target_: toy.models.Plan, net: {_target_: toy.models.fails}}", "it.net: toy.models.fails: its own"),
        ("{_target_: toy.models.refuses, kind: type}", "it: toy.models.refuses: no"),
        ("{_target_: toy.models.refuses, kind: index}", "it: toy.models.refuses: no"),
        ("{_target_: toy.models.refuses, kind: lightning}", "it: toy.models.refuses: no"),
    ],
)
def test_what_a_target_refuses_is_one_line(text, message):
    with pytest.raises(UserError) as caught:
        build(node(text))
    assert str(caught.value) == message
    with pytest.raises(UserError, match=r"^torch\.nn\.Linear: "):
        build({"_target_": "torch.nn.Linear", "in_features": "x", "out_features": 3})
    with pytest.raises(UserError, match=r"^torch\.nn\.Linear: Trying to create tensor with negative dimension -2"):
        build({"_target_": "torch.nn.Linear", "in_features": -2, "out_features": 3})
    with pytest.raises(UserError, match=r"^lightning\.pytorch\.Trainer: .*transformer.engine"):
        build({"_target_": "lightning.pytorch.Trainer", "precision": "transformer-engine", "accelerator": "cpu"})
    with pytest.raises(OSError, match="not the value's fault"):
        build(node("_target_: toy.models.breaks"))


def test_partial():
    made = build(node("{_target_: toy.models.double, _partial_: true, by: 4}"))
    assert isinstance(made, functools.partial) and made(3) == 12
    assert build(node("{_target_: toy.models.double, _partial_: false, x: 4}")) == 8


def test_build_resolves_from_the_root_and_names_keys_from_there():
    cfg = OmegaConf.create("{allow: [toy.], width: 7, a: {b: [{_target_: toy.models.Net, width: '${width}'}]}}")
    assert build(cfg.a.b[0]).width == 7
    cfg.a.b[0].width = "${widht}"
    with pytest.raises(UserError, match=r"^a\.b\[0\]\.width: Interpolation key 'widht' not found$"):
        build(cfg.a.b[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_target_: toy.models.Plan", "it.net: toy.models.Plan needs a value"),
        ("_target_: toy.models.Head", "it.size: toy.models.Head needs a value"),
        (
            "{_target_: toy.models.Plan, net: {_target_: toy.models.double}}",
            "it.net.x: toy.models.double needs a value",
        ),
    ],
)
def test_a_missing_argument_is_named(text, message):
    with pytest.raises(UserError) as caught:
        build(node(text))
    assert str(caught.value) == message


def test_a_plain_mapping_builds_and_cannot_allow_itself_anything():
    assert build({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}).out_features == 3
    with pytest.raises(UserError, match=r"^_target_: toy\.models\.Net is not allowed, only physrep\., torch\., "):
        build({"_target_": "toy.models.Net", "allow": ["toy."]})
    with pytest.raises(UserError, match=r"^in_features: torch\.nn\.Linear needs a value$"):
        build({"_target_": "torch.nn.Linear"})


# Names and differences


def test_the_hash_is_stable_and_blind_to_what_changes_no_result():
    same = [
        [],
        ["runs=elsewhere"],
        ["dry_run=true"],
        ["encoder.depth=2"],
        ["encoder.depth=${encoder.sizes[0]}", "encoder.depth=2"],
    ]
    assert len({config_hash(compose(argv)) for argv in same}) == 1
    assert len({config_hash(compose(argv)) for argv in ([], ["seed=1"], ["encoder.depth=3"], ["objective.lr=1"])}) == 4
    cfg = OmegaConf.create(
        {"b": {"d": 1, "c": "${a}"}, "a": [1, None], "data": {"root": "x", "num_workers": 3, "e": {}}}
    )
    other = OmegaConf.create({"a": [1, None], "runs": "y", "data": {"e": {}}, "b": {"c": [1, None], "d": 1}})
    assert config_hash(cfg) == config_hash(other) == "29b01e49"


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        ("", "waves-plan-small-seed0"),
        ("seed=3 encoder=deep data=winds", "winds-plan-deep-seed3"),
        ("objective.sim=2", "waves-plan-small-seed0-sim=2"),
        (
            "objective.steps=5 objective.lr=1e-4 encoder.sizes[0]=1",
            "waves-plan-small-seed0-sizes=1_5_6-lr=0.0001-steps=5",
        ),
        ("encoder.depth=3", "waves-plan-small-seed0-depth=3"),
        ("encoder.name=x", "waves-plan-small-seed0-encoder.name=x"),  # data.name is another
        ("encoder.path=../a/b:c", "waves-plan-small-seed0-path=.._a_b_c"),
        ("runs=x dry_run=true probe=wide", "waves-plan-small-seed0"),
        ("experiment=demo", "waves-plan-deep-seed5"),
        ("experiment=demo seed=1 encoder.width=4", "waves-plan-deep-seed1-width=4"),
        ("encoder.flag=true encoder.free=[[1,b]]", "waves-plan-small-seed0-flag=true-free=1_b"),
        ("run=mine objective.sim=4", "mine"),
    ],
)
def test_run_name(argv, name):
    assert run_name(compose(argv.split())) == name
    assert run_name(compose(["seed=2"], "open"), "open") == "small-seed2"


def test_a_long_run_name_ends_in_the_hash():
    cfg = compose([f"encoder.name={'a' * 73}"])
    assert run_name(cfg) == f"waves-plan-small-seed0-{config_hash(cfg)}"
    fits = f"encoder.path={'a' * 74}"
    assert run_name(compose([fits])) == f"waves-plan-small-seed0-path={'a' * 74}"


def test_diff():
    old, new = compose([]), compose(["seed=1", "objective.lr=0.1", "encoder.sizes=[1]"])
    del new.data
    assert diff(old, new) == [
        "data._target_: toy.models.Net -> (none)",
        "data.name: waves -> (none)",
        "encoder.sizes: [4, 5, 6] -> [1]",
        "objective.lr: (none) -> 0.1",
        "objective.net.sizes: [4, 5, 6] -> [1]",
        "seed: 0 -> 1",
    ]
    assert diff({"a": 1}, {"a": "1"}) == ["a: 1 -> 1"] and diff(old, old) == []


@pytest.mark.parametrize(
    ("argv", "lines"),
    [
        ([], [[]]),
        (["a=1"], [["a=1"]]),
        (
            ["a=1,2", "b=x", "c=3,4"],
            [["a=1", "b=x", "c=3"], ["a=1", "b=x", "c=4"], ["a=2", "b=x", "c=3"], ["a=2", "b=x", "c=4"]],
        ),
        (["p=[a,b]"], [["p=[a,b]"]]),
        (["p=[a,b],c", "--cfg"], [["p=[a,b]", "--cfg"], ["p=c", "--cfg"]]),
        (["p={x: 1, y: 2},null"], [["p={x: 1, y: 2}"], ["p=null"]]),
        (["p='a,b'"], [["p='a,b'"]]),
        (["p=1e-3, 1e-4"], [["p=1e-3"], ["p=1e-4"]]),
        (["p=${a}"], [["p=${a}"]]),
        (["p="], [["p="]]),
        (["run=a=b,c"], [["run=a=b"], ["run=c"]]),
    ],
)
def test_grid(argv, lines):
    assert grid(argv) == lines


def test_grid_is_the_product_in_order():
    expected = [[f"a={a}", f"b={b}"] for a, b in itertools.product("123", "xy")]
    assert grid(["a=1,2,3", "b=x,y"]) == expected


# The command line


def printed(capsys, *argv: str, base: str = "config") -> str:
    with pytest.raises(SystemExit) as caught:
        cli(argv, base, "Do it.\n\n    Well.")
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_cli_returns_the_configuration():
    assert cli(["seed=3"]) == compose(["seed=3"])
    assert cli(["--dry-run"]).dry_run is True


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help(capsys, monkeypatch, option):
    monkeypatch.setattr(sys, "argv", ["/x/physrep/fit.py"])
    lines = printed(capsys, option, "seed=1").splitlines()
    assert lines[:3] == ["Do it.", "", "Well."]
    assert "  data=waves                       of waves, winds" in lines
    assert "  probe=[ridge, deep]              of deep, ridge, wide" in lines
    assert "  seed=0  # of everything" in lines
    assert any(line.startswith("  --dry-run ") for line in lines)
    assert lines[-2:] == ["  python -m physrep.fit data=winds --cfg", "  python -m physrep.fit --list data"]
    monkeypatch.setattr(sys, "argv", ["/x/physrep/simulate/__main__.py"])
    assert printed(capsys, option, base="sim").endswith("  python -m physrep.simulate --list system\n")


def test_help_without_groups_names_no_groups_and_no_dry_run(capsys):
    text = printed(capsys, "--help", base="bare")
    assert "Groups" not in text and "--dry-run" not in text and "  resamples=100" in text


def test_list(capsys, place, monkeypatch):
    text = printed(capsys, "--list")
    assert "encoder:\n  deep\n" in text and "  small                A small one.\n" in text
    assert "experiment:\n  blank\n  demo\n" in text and "  paper\n" in text
    (place / "own").mkdir()
    monkeypatch.chdir(place / "own")
    write(place / "own/conf", {"data/mine.yaml": "# Mine.\n"})
    assert printed(capsys, "--list", "data") == (
        "data:\n  mine                 Mine.\n  waves                Waves.\n  winds\n"
    )


def test_cfg_prints_the_resolved_configuration(capsys):
    text = printed(capsys, "--cfg", "encoder.depth=12")
    cfg = OmegaConf.create(text)
    assert cfg.objective.net.depth == 12 and "${" not in text


@pytest.mark.parametrize(
    ("argv", "base", "message"),
    [
        (["--hlp"], "config", "--hlp: no such option; did you mean --help or --list?"),
        (["--dry-run"], "bare", "--dry-run: no such option; there is --cfg, --help, --list"),
        (["--list", "encodr"], "config", "--list encodr: no such group; did you mean encoder?"),
        (["--cfg", "sed=1"], "config", "sed: no such key; did you mean seed?"),
    ],
)
def test_cli_mistakes(argv, base, message):
    assert error(*argv, base=base, call=cli) == message


# The shipped files, in processes of their own


def run(code: str, cwd: Path, path: Path = ROOT) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=cwd, env={"PYTHONPATH": str(path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


MISTAKE = """
import sys
from physrep.config import cli
from physrep.errors import UserError
try: cli({argv!r}, {base!r}, "What it does.")
except UserError as error: print(error)
except SystemExit: pass
assert not {{"torch", "lightning", "numpy"}} & sys.modules.keys()
"""


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--help"], "What it does."),
        (["--list"], "encoder:"),
        (["--list", "data"], "data:"),
        (["seeed=1"], "seeed: no such key; did you mean seed or sweep?"),
        (["seed=x"], "seed=x: expected int, got str"),
        (["data=nothing"], "data=nothing: no such choice"),
    ],
)
def test_help_and_mistakes_do_not_load_torch(tmp_path, argv, said):
    assert said in run(MISTAKE.format(argv=argv, base="config"), tmp_path)


def test_a_wrong_key_of_a_target_does_not_load_torch(tmp_path):
    write(tmp_path, {"conf/trainer/it.yaml": "_target_: lightning.Trainer\nmax_step: 3\n"})
    said = run(MISTAKE.format(argv=["trainer=it"], base="config"), tmp_path)
    message = "trainer.max_step: no such key of lightning.Trainer; did you mean max_steps or max_time?"
    assert said == f"conf/trainer/it.yaml: {message}\n"


def test_a_wheel_carries_its_own_conf(tmp_path):
    site, home = tmp_path / "site", tmp_path / "home"
    home.mkdir()
    (site / "physrep").mkdir(parents=True)
    for name in ("__init__.py", "errors.py", "signatures.py", "config.py"):
        shutil.copy(ROOT / "physrep" / name, site / "physrep")
    write(site / "conf", {"config.yaml": "wrong: true\n"})  # of another distribution
    write(site / "physrep/conf", {"config.yaml": "groups: {encoder: mlp}\nseed: 0\nexperiment: dev\n"})
    write(site / "physrep/conf", {"encoder/mlp.yaml": "_target_: torch.nn.Linear\nin_features: 3\n"})
    write(site / "physrep/experiments", {"demo.yaml": "seed: 4\n"})
    code = "from physrep.config import compose; print(compose(['experiment=demo']))"
    expected = {
        "seed": 4, "experiment": "demo", "encoder": {"_target_": "torch.nn.Linear", "in_features": 3},
        "choices": {"encoder": "mlp"},
    }  # fmt: skip
    assert run(code, home, site) == f"{expected}\n"


def shipped() -> list[tuple[str, str]]:
    """Every base with each choice of its groups, each preset and each experiment."""
    cases = []
    for base in sorted((ROOT / "conf").glob("*.yaml")):
        content = OmegaConf.load(base)
        cases.append((base.stem, ""))
        for group in content.get("groups", {}):
            for file in sorted((ROOT / "conf" / group).glob("*.yaml")):
                cases.append((base.stem, f"{group}={file.stem}"))
                presets = OmegaConf.load(file).get("presets", {})
                cases += [(base.stem, f"{group}={file.stem} preset={preset}") for preset in presets]
        if "groups" in content and "experiment" in content:
            files = [*(ROOT / "experiments").glob("*.yaml"), *(ROOT / "experiments").glob("*/config.yaml")]
            names = sorted(file.parent.name if file.name == "config.yaml" else file.stem for file in files)
            cases += [(base.stem, f"experiment={name}") for name in names]
    return cases


@pytest.mark.parametrize(("base", "argv"), shipped())
def test_every_shipped_file_composes_with_a_description(base, argv, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(config, "__file__", str(ROOT / "physrep/config.py"))
    cfg = compose(argv.split(), base)
    for part in argv.split():
        group, _, name = part.partition("=")
        file = ROOT / "conf" / group / f"{name}.yaml"
        assert not file.exists() or file.read_text().startswith("# ")
    assert len(config_hash(cfg)) == 8
