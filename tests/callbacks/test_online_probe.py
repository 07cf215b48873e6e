"""The online probe: what it logs, and that it changes nothing."""

from types import SimpleNamespace

import pytest
import torch

from physrep.callbacks.online_probe import OnlineProbe, dead


class Recorder:
    """Stands for an objective whose tokens are the clip's first channel."""

    device = torch.device("cpu")

    def __init__(self):
        self.logged = {}

    def encode(self, clip):
        return clip[:, 0].flatten(1, 2)

    def log_dict(self, values, **_):
        self.logged |= {k: float(v) for k, v in values.items()}


def run(theta_in_clip: bool) -> dict[str, float]:
    torch.manual_seed(0)
    theta = torch.randn(24, 2).repeat_interleave(4, 0)
    clip = torch.randn(96, 3, 6, 4, 5)
    if theta_in_clip:
        clip[:, 0, :2] = 0.1 * clip[:, 0, :2] + theta[:, :1, None, None]
    batch = {"clip": clip, "theta": theta, "trajectory": torch.arange(24).repeat_interleave(4)}
    probe, objective = OnlineProbe(["Reynolds", "Schmidt"], frames=2), Recorder()
    before, trainer = torch.get_rng_state(), SimpleNamespace(global_step=1, datamodule=None)
    probe.on_validation_epoch_start(trainer, objective)
    for i in range(0, 96, 32):
        part = {k: v[i : i + 32] for k, v in batch.items()}
        probe.on_validation_batch_end(trainer, objective, None, part, i // 32)
    probe.on_validation_epoch_end(trainer, objective)
    assert torch.equal(torch.get_rng_state(), before), "no randomness is drawn"
    return objective.logged


def test_reads_what_is_there_and_only_that():
    logged = run(theta_in_clip=True)
    assert logged["probe/Reynolds"] < 0.05
    assert logged["probe/Schmidt"] > 0.7
    assert logged["probe/mse"] == pytest.approx((logged["probe/Reynolds"] + logged["probe/Schmidt"]) / 2)
    assert logged["std/between"] > 3 * logged["std/within"]


def test_noise_is_no_physics():
    logged = run(theta_in_clip=False)
    assert logged["probe/mse"] > 0.8
    assert logged["std/between"] < logged["std/within"]
    assert 1 <= logged["rank/effective"] <= 10


def test_an_encoder_is_dead_only_where_nothing_tells_clips_apart():
    x = torch.randn(8, 5)
    assert dead(x) == ""
    assert dead(1e-12 * x) == "", "small is not dead"
    assert dead(torch.cat([x[:, :1], torch.ones(8, 4)], 1)) == "", "nor is what lives in one dimension"
    assert dead(x[:1].expand(8, 5)) == "all clips have the same embedding"
    assert dead(torch.zeros(8, 5)) == "all clips have the same embedding"
    assert dead(torch.where(torch.eye(8, 5) > 0, torch.nan, x)) == "embeddings are not finite"
