"""Every shipped choice composes, builds and takes a step."""

import re
from pathlib import Path

import pytest
import torch

from physrep.config import build, cli, compose
from physrep.fit import main as fit

ENCODERS = {
    "videomae": "vit_nano",
    "mpp": "avit_nano",
    "masked_latent": "vit_nano",
    "masked_latent_vicreg": "vit_nano",
}  # of the objectives that refuse an experiment's convolutional encoder


def names(group):
    return sorted(p.stem for p in Path("conf", group).glob("*.yaml"))


@pytest.mark.parametrize("name", names("data"))
def test_data(name):
    data = build(compose([f"data={name}"]).data, seed=0)
    assert data.frames >= 8
    assert data.folder.parent.name == "datasets"


@pytest.mark.parametrize("name", names("encoder"))
def test_encoder(name):
    with torch.device("meta"):
        encoder = build(compose([f"encoder={name}"]).encoder, channels=4)
        features = encoder(torch.randn(2, 4, 16, 64, 64))
    assert features.shape[:2] == (2, encoder.width)


@pytest.mark.parametrize("group", ["data", "encoder", "objective", "probe"])
def test_keys_of_a_choice_are_told(group, capsys):
    for name in names(group):
        with pytest.raises(SystemExit) as stop:
            cli([f"{group}={name}", "--help"])
        assert stop.value.code == 0
        first, *keys = capsys.readouterr().out.splitlines()
        assert ": physrep." in first
        assert all(re.match(rf"  {group}\.[\w.]+=.+", line) for line in keys) or group == "data"
        assert keys


@pytest.mark.parametrize("name", names("trainer"))
def test_trainer(name):
    if name == "gpu" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    trainer = build(compose([f"trainer={name}"]).trainer, logger=False, enable_progress_bar=False)
    assert trainer.max_steps > 0


@pytest.mark.parametrize("name", names("probe"))
def test_probe(name):
    probe = build(compose([f"probe={name}"]).probe[name])
    assert probe.needs in {"pooled", "tokens", "clips"}


@pytest.mark.parametrize("experiment", sorted(p.parent.name for p in Path("experiments").glob("*/config.yaml")))
@pytest.mark.parametrize("objective", names("objective"))
def test_every_experiment_takes_a_step(experiment, objective, datasets, tmp_path, capsys):
    other = [f"encoder={ENCODERS[objective]}"] if objective in ENCODERS else []
    fit([f"experiment={experiment}", f"objective={objective}", "data=shear_flow_tiny", f"data.root={datasets}",
         *other, "--dry-run"])  # fmt: skip
    assert "losses loss" in capsys.readouterr().out
