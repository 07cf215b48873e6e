import math

import pytest
import torch

from physrep.errors import UserError
from physrep.probes.features import Features, Standardiser


def test_pooled_is_mean_and_std_over_tokens():
    tokens = torch.randn(300, 5, 7).half()
    pooled = Features(tokens, torch.zeros(300, 1), torch.arange(300)).pooled
    assert pooled.dtype == torch.float32 and pooled.shape == (300, 14)
    for row in (0, 255, 256, 299):
        columns = [[float(v) for v in tokens[row, :, d]] for d in range(7)]
        mean = [sum(c) / 5 for c in columns]
        std = [math.sqrt(sum((v - m) ** 2 for v in c) / 5) for c, m in zip(columns, mean, strict=True)]
        torch.testing.assert_close(pooled[row], torch.tensor(mean + std), rtol=1e-4, atol=1e-5)


def test_a_single_token_is_its_own_pooling():
    tokens = torch.randn(4, 1, 3)
    assert torch.equal(Features(tokens, torch.zeros(4, 1), torch.arange(4)).pooled, tokens[:, 0])


def test_rows_must_agree():
    with pytest.raises(ValueError, match="one row a window"):
        Features(torch.zeros(3, 1, 2), torch.zeros(2, 1), torch.arange(3))


def test_train_statistics_standardise_other_features():
    train, other = torch.randn(600, 3, 4) * 2 + 5, torch.randn(2, 3, 4)
    z = Standardiser.of(train)(other)
    rows = train.double().flatten(0, 1)
    want = (other - rows.mean(0)) / rows.std(0, correction=0)
    torch.testing.assert_close(z.double(), want, rtol=1e-5, atol=1e-5)
    assert z.dtype == torch.float32 and Standardiser.of(train)(other.half()).dtype == torch.float32


def test_constant_features_become_zero_even_where_others_vary():
    train = torch.cat([torch.full((50, 1), 0.1), torch.randn(50, 1) * 1e-9], 1)
    z = Standardiser.of(train)(torch.tensor([[7.0, 1e-9]]))
    assert z[0, 0] == 0 and z[0, 1] != 0


def test_limit_cuts_outliers():
    train = torch.randn(100, 1)
    assert Standardiser.of(train, limit=5)(torch.tensor([[1e9], [-1e9]])).flatten().tolist() == [5, -5]


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="not finite"):
        Standardiser.of(torch.tensor([[1.0], [math.nan]]))
