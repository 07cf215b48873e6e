"""Embeddings: every window once, the cache's key, nothing half-written."""

import h5py
import pytest
import torch

from physrep.data.shear_flow import ShearFlow
from physrep.errors import UserError
from physrep.probes import embed as module
from physrep.probes.baselines import statistics
from physrep.probes.embed import Source, embed, mean_source, statistics_source


def data(datasets, **options):
    made = ShearFlow("shear_flow_tiny", root=str(datasets), **{"frames": 8, "batch_size": 5} | options)
    made.setup("probe")
    return made


def pixels(calls: list[int], mark: str = "pixels") -> Source:
    def encode(clip):
        calls.append(len(clip))
        return clip.mean((2, 4)).transpose(1, 2)

    return Source("pixels", "", encode, mark, torch.float32)


def test_tokens_of_every_window_in_order(datasets, tmp_path):
    made = data(datasets, eval_step=4)
    features = embed(pixels([]), made, "valid", tmp_path)
    assert features.tokens.shape == (12 * 4, 16, 4)
    assert features.trajectory.tolist() == [i for i in range(12) for _ in range(4)]
    window = made.prepare_batch(next(iter(made.loader("valid", made.windows("valid", 4)[6:7]))), augment=False)
    assert torch.equal(features.tokens[6], window["clip"][0].mean((1, 3)).T)
    assert torch.equal(features.theta[6], window["theta"][0])


def test_cache_is_used_and_its_key_tells_what_matters(datasets, tmp_path):
    calls: list[int] = []
    first = embed(pixels(calls), data(datasets), "test", tmp_path)
    n = len(calls)
    again = embed(pixels(calls), data(datasets), "test", tmp_path)
    assert len(calls) == n
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.theta, again.theta)
    changed = [
        (pixels(calls, "other weights"), data(datasets), "test"),
        (pixels(calls), data(datasets), "valid"),
        (pixels(calls), data(datasets, frames=6), "test"),
        (pixels(calls), data(datasets, eval_step=3), "test"),
        (pixels(calls), data(datasets, crop={"y": [0, 16]}), "test"),
        (pixels(calls), data(datasets, targets={"Schmidt": "linear"}), "test"),
    ]
    for case in changed:
        before = len(calls)
        embed(*case, tmp_path)
        assert len(calls) > before, case
    assert len(list(tmp_path.iterdir())) == 7


def test_batch_size_does_not_matter(datasets, tmp_path):
    a, b = (embed(pixels([]), data(datasets, batch_size=n), "test", tmp_path / str(n)) for n in (3, 7))
    assert torch.equal(a.tokens, b.tokens)


def test_interrupted_leaves_nothing(datasets, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(h5py.Group, "create_dataset", stop)
    with pytest.raises(KeyboardInterrupt):
        embed(pixels([]), data(datasets), "test", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_embeddings_that_are_not_finite_are_refused(datasets, tmp_path):
    broken = Source("broken", "", lambda clip: torch.full((len(clip), 2, 8), torch.nan), "broken")
    with pytest.raises(UserError, match="broken: embeddings of .*test are not finite"):
        embed(broken, data(datasets), "test", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_controls(datasets, tmp_path):
    made = data(datasets)
    raw = next(iter(made.test_dataloader()))
    clip = made.prepare_batch(raw, augment=False)["clip"]
    features = embed(statistics_source(), made, "test", tmp_path)
    width = statistics(clip).shape[1]
    assert features.tokens.shape[1:] == (1, width + -width % 8)
    assert features.tokens.dtype == torch.float32
    torch.testing.assert_close(features.tokens[:5, 0, :width], statistics(clip))
    assert not embed(mean_source(), made, "test", tmp_path).tokens.any()


def test_the_statistics_key_follows_their_code(monkeypatch):
    before = statistics_source().digest
    monkeypatch.setattr(module.inspect, "getsource", lambda _: "def statistics(): another")
    assert statistics_source().digest != before
