"""Embeddings: every window once, the cache's key, nothing half-written, bfloat16 within the noise of the probes."""

from dataclasses import replace
from functools import partial

import h5py
import pytest
import torch

from physrep.data.shear_flow import ShearFlow
from physrep.errors import UserError
from physrep.frozen import Frozen
from physrep.probes import embed as module
from physrep.probes.baselines import statistics
from physrep.probes.closed_form import KNN, Ridge
from physrep.probes.embed import Source, embed, mean_source, precision, statistics_source
from physrep.probes.finetune import FineTune
from physrep.probes.module import MLP, Attentive, Linear
from tests.objectives.test_objectives import make


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


def test_every_window_is_read_once_in_whole_batches(datasets, tmp_path):
    calls: list[int] = []
    made = data(datasets, eval_step=4, batch_size=16)
    embed(pixels(calls), made, "train", tmp_path)
    assert sum(calls) == len(made.windows("train", 4))
    assert calls[:-1] == [16] * (len(calls) - 1)


def test_layers_are_embedded_beside_the_output(datasets, tmp_path):
    """By one pass; each is what its module returns."""
    made = data(datasets, batch_size=16)
    frozen = Frozen(make("jepa"), made.meta(), step=0)
    passes: list[int] = []

    def encode(clip: torch.Tensor) -> torch.Tensor:
        passes.append(len(clip))
        return frozen.encode(clip, normalised=True)

    source = Source("jepa", "", encode, "weights", model=frozen, layers=("1", "2"))
    output = embed(source, made, "test", tmp_path)
    whole = list(passes)
    first, last = (embed(replace(source, layer=layer), made, "test", tmp_path) for layer in source.layers)
    assert passes == whole, "one pass for all"
    assert sum(whole) == len(output) == len(first)
    torch.testing.assert_close(last.pooled, output.pooled, atol=2e-3, rtol=2e-3)
    clip = made.prepare_batch(next(iter(made.test_dataloader())), augment=False)["clip"]
    seen: list[torch.Tensor] = []
    hook = frozen.objective.encoder.stages[0].register_forward_hook(lambda _, x, y: seen.append(y))
    frozen.encode(clip, normalised=True)
    hook.remove()
    rows = seen[0].movedim(1, -1).flatten(1, -2)
    want = torch.cat([rows.mean(1), rows.std(1, correction=0)], 1).to(torch.float16)
    torch.testing.assert_close(first.tokens[: len(clip), 0], want, atol=2e-3, rtol=2e-3)
    kept = {place: place.stat().st_mtime_ns for place in tmp_path.iterdir()}
    embed(replace(source, layer="1", digest="others"), made, "test", tmp_path)
    assert len([*tmp_path.iterdir()]) == len(kept) + 2, "the output is left out if it is not asked for"
    assert {place: place.stat().st_mtime_ns for place in kept} == kept
    assert passes == whole * 2
    for place in tmp_path.iterdir():
        place.write_bytes(place.read_bytes()[:100])
    embed(source, made, "test", tmp_path)
    assert torch.equal(embed(replace(source, layer="1"), made, "test", tmp_path).tokens, first.tokens)
    assert passes == whole * 3, "damaged files are made anew together"


def test_bfloat16_changes_no_probe_beyond_its_noise(datasets, tmp_path, monkeypatch):
    """What a GPU does, by a CPU's bfloat16: the errors of probes that fit well agree within 5 %."""
    made = data(datasets, eval_step=2, batch_size=24)
    frozen = Frozen(make("jepa"), made.meta(), step=0)
    source = Source("jepa", "", partial(frozen.encode, normalised=True), "weights", model=frozen)
    seen, errors = [], []
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(module, "precision", lambda _, dtype=dtype: dtype)
        seen.append(embed(source, made, "train", tmp_path))
        for probe in (Ridge(), Attentive(epochs=20, lrs=[1e-2])):
            fitted = probe.fit(seen[-1], seen[-1])
            errors.append(float((fitted(seen[-1]) - seen[-1].theta).square().mean()))
    assert len(list(tmp_path.iterdir())) == 2, "either has a key of its own"
    assert not torch.equal(seen[0].tokens, seen[1].tokens)
    assert errors[:2] == pytest.approx(errors[2:], rel=0.05)
    assert max(errors) < 0.5


def test_cpus_compute_in_float32():
    assert precision(torch.device("cpu")) is torch.float32


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


@pytest.mark.gpu
def test_a_gpu_is_used_and_errs_as_a_cpu_does(datasets, tmp_path, monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    made = data(datasets, eval_step=2, batch_size=24)
    frozen = Frozen(make("jepa"), made.meta(), step=0)
    source = Source("jepa", "", partial(frozen.encode, normalised=True), "weights", model=frozen)
    errors = []
    for place in ("cpu", "cuda"):
        monkeypatch.setattr(module, "device", lambda place=place: torch.device(place))
        seen = embed(source, made, "train", tmp_path / place)
        again = embed(source, made, "train", tmp_path / place)
        assert seen.tokens.device.type == again.tokens.device.type == place
        assert torch.equal(seen.tokens, again.tokens)
        for probe in (Ridge(), KNN(), Linear(lrs=[1e-2]), MLP(), Attentive(epochs=20, lrs=[1e-2])):
            errors.append(float((probe.fit(seen, seen)(seen) - seen.theta).square().mean()))
    assert errors[:5] == pytest.approx(errors[5:], rel=0.1, abs=1e-3)
    predicted, truth = FineTune(steps=2, warmup=0, checks=1).fit(frozen, made).predict("test")
    assert predicted.is_cuda and len(predicted) == len(truth.theta)
