import copy
import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils import vector_to_parameters

from physrep.errors import UserError
from physrep.probes import module
from physrep.probes.features import Features
from physrep.probes.heads import AttentiveHead
from physrep.probes.module import MLP, Attentive, Linear, order


def features(seed, rows=64, tokens=5, width=8, noise=0.5):
    """Tokens of which some hold theta, non-linearly, and the rest are noise."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(rows, 2, generator=generator)
    law = torch.randn(2, width, generator=torch.Generator().manual_seed(99))
    x = noise * torch.randn(rows, tokens, width, generator=generator)
    x[:, ::2] += torch.tanh(theta @ law)[:, None]
    return Features(x.half(), theta, torch.arange(rows) // 4)


@pytest.fixture
def probes(monkeypatch):
    """The Probe of each fit, with the batches that it was trained on and the MSE of its copies after each epoch."""
    made = []

    class Spy(module.Probe):
        def __init__(self, *args):
            super().__init__(*args)
            self.seen, self.history = [], []
            made.append(self)

        def forward(self, x):
            if torch.is_grad_enabled():
                self.seen.append((self.current_epoch, x))
            return super().forward(x)

        def mse(self, *split):
            self.history.append((mse := super().mse(*split)).tolist())
            return mse

    monkeypatch.setattr(module, "Probe", Spy)
    return made


@pytest.mark.parametrize("kind", [Linear, MLP, Attentive])
def test_learning_rates_side_by_side_equal_each_alone(kind, probes):
    train, valid = features(0), features(1)
    lrs = (1e-3, 1e-2, 1e-1)
    kind(epochs=3, batch_size=24, lrs=lrs).fit(train, valid)
    for lr in lrs:
        kind(epochs=3, batch_size=24, lrs=[lr]).fit(train, valid)
    together, *alone = probes
    for i, one in enumerate(alone):
        assert [h[i] for h in together.history] == pytest.approx([h[0] for h in one.history], rel=1e-4)
    finals = [one.history[-1][0] for one in alone]
    assert len(set(finals)) == len(lrs)


@pytest.mark.parametrize("kind", [Linear, MLP, Attentive])
def test_copies_are_trained_as_heads_by_adamw_with_a_cosine_to_zero(kind, probes):
    """All copies against a plain loop over a module of its own for each."""
    train, valid, lrs = features(0), features(1), (0.003, 0.01)
    train = Features(train.tokens.float(), train.theta, train.trajectory)  # half precision would be rounded again
    probe = kind(epochs=4, batch_size=24, lrs=lrs, weight_decay=0.3, seed=5)
    probe.fit(train, valid)
    x = getattr(train, probe.needs).double()
    rows = x.flatten(0, -2)
    x = (x - rows.mean(0)) / rows.std(0, correction=0)
    x = (F.layer_norm(x, x.shape[-1:]) if kind is Attentive else x.clamp(-5, 5)).float()
    for i, lr in enumerate(lrs):
        torch.manual_seed(5)
        head = probe.head(x.shape[-1], 2)
        start = [w.detach().clone() for w in head.parameters()]
        optimizer = torch.optim.AdamW(head.parameters(), weight_decay=0.3)
        step = 0
        for epoch in range(4):
            for batch in order(64, 5, epoch).split(24):
                optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + np.cos(np.pi * step / 12))
                optimizer.zero_grad()
                (head(x[batch]) - train.theta[batch]).square().mean().backward()
                optimizer.step()
                step += 1
        trained = copy.deepcopy(head)
        vector_to_parameters(probes[0].copies[i].detach(), trained.parameters())
        for (name, w), other, first in zip(head.named_parameters(), trained.parameters(), start, strict=True):
            if name != "k.bias":  # softmax ignores it: its gradient is rounding
                assert (other - w).norm() < 1e-2 * (w - first).norm(), name
        torch.testing.assert_close(trained(x), head(x), rtol=1e-3, atol=1e-3)


def test_an_epoch_holds_every_window_once_in_an_order_of_its_own(probes):
    train = features(0)
    x = Linear(epochs=3, batch_size=24, lrs=[1e-3], seed=7).fit(train, features(1)).standardise(train.pooled)
    orders = []
    for epoch in range(3):
        parts = [seen for e, seen in probes[0].seen if e == epoch]
        assert [len(p) for p in parts] == [24, 24, 16]
        rows = torch.cat(parts)[:, None].eq(x).all(-1).int().argmax(1)
        assert sorted(rows.tolist()) == list(range(64))
        assert torch.equal(rows, order(64, 7, epoch))
        orders.append(rows.tolist())
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_the_best_epoch_and_learning_rate_are_kept(probes):
    train, valid = features(0, rows=16, noise=3.0), features(1, noise=3.0)  # so few windows that the head overfits
    fitted = MLP(epochs=20, batch_size=16, lrs=(1e-4, 1e-2)).fit(train, valid)
    history = torch.tensor(probes[0].history)  # [epochs, copies]
    epoch, i = divmod(int(history.argmin()), 2)
    assert fitted.chosen["epoch"] == epoch + 1 < 20
    assert fitted.chosen["lr"] == (1e-4, 1e-2)[i]
    assert float((fitted(valid) - valid.theta).square().mean()) == pytest.approx(fitted.chosen["valid_mse"], rel=1e-5)
    assert history[-1, i] > 1.05 * history.min()


def test_selection_listens_to_valid_alone():
    train, valid, test = features(0), features(1), features(2)
    probe = Linear(epochs=3, lrs=(1e-4, 1e-1))
    fitted = probe.fit(train, valid)
    chosen = dict(fitted.chosen)
    fitted(Features(test.tokens * 100, -test.theta, test.trajectory))
    assert fitted.chosen == chosen and chosen["lr"] == 1e-1
    indifferent = Features(valid.tokens, torch.zeros_like(valid.theta), valid.trajectory)
    assert probe.fit(train, indifferent).chosen["lr"] == 1e-4


def test_attention_finds_tokens_that_pooling_blurs():
    """One token holds theta and another -theta: the mean is blind to it, the standard deviation to its sign."""

    def make(seed):
        generator = torch.Generator().manual_seed(seed)
        theta = torch.randn(200, 1, generator=generator)
        x = 0.1 * torch.randn(200, 4, 8, generator=generator)
        x[:, 0, 0], x[:, 1, 0] = 1.0, -1.0
        x[:, 0, 1], x[:, 1, 1] = theta[:, 0], -theta[:, 0]
        return Features(x, theta, torch.arange(200))

    train, valid, test = make(0), make(1), make(2)
    error = {
        p: float((p(epochs=30, batch_size=25, lrs=[1e-2]).fit(train, valid)(test) - test.theta).square().mean())
        for p in (Linear, Attentive)
    }
    assert error[Attentive] < 0.2 and error[Linear] > 0.5


def test_a_single_token_is_enough_for_attention():
    train, valid = features(0, rows=400, tokens=1), features(1, tokens=1)
    assert Attentive(epochs=10, lrs=[3e-3]).fit(train, valid).chosen["valid_mse"] < 0.7


@pytest.mark.parametrize("kind", [MLP, Attentive])
def test_a_fit_is_a_function_of_its_seed_and_touches_no_random_state(kind):
    train, valid = features(0), features(1)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    first = kind(epochs=2, seed=1).fit(train, valid)(valid)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]  # noqa: NPY002
    torch.rand(7)
    assert torch.equal(kind(epochs=2, seed=1).fit(train, valid)(valid), first)
    assert not torch.equal(kind(epochs=2, seed=2).fit(train, valid)(valid), first)


def test_a_fit_is_silent_and_writes_nothing(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Linear(epochs=1).fit(features(0), features(1))
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_a_copy_that_diverges_does_not_hurt_the_others():
    train, valid = features(0), features(1)
    one = Linear(epochs=2, lrs=[1e-2]).fit(train, valid)
    both = Linear(epochs=2, lrs=[1e-2, 1e30]).fit(train, valid)
    assert both.chosen == one.chosen
    with pytest.raises(UserError, match="diverged"):
        Linear(epochs=2, lrs=[float("inf")]).fit(train, valid)


def test_plans_without_an_epoch_or_a_rate_are_refused():
    for plan in ({"epochs": 0}, {"lrs": []}, {"batch_size": 0}):
        with pytest.raises(UserError, match="one or more"):
            Attentive(**plan)


def test_probes_pass_their_arguments_to_the_head():
    head = Attentive(heads=4, mlp_ratio=12).head(128, 2)
    assert isinstance(head, AttentiveHead) and head.heads == 4
    assert head.mlp[1].out_features == 1536
    assert MLP(hidden=17).head(6, 2).layers[0].out_features == 17
