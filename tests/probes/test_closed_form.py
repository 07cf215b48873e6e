import math

import pytest
import torch

from physrep.errors import UserError
from physrep.probes.closed_form import KNN, Ridge, ridge_cv, solve
from physrep.probes.features import Features


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def features(seed, rows=60, width=12, noise=0.3, per=4):
    """Linear in theta, plus noise; one token."""
    theta = random(seed, rows // per, 2).repeat_interleave(per, 0)
    x = theta @ random(1000, 2, width) + noise * random(seed + 1, rows, width)
    return Features(x[:, None], theta, torch.arange(rows) // per)


@pytest.mark.parametrize(("rows", "width"), [(30, 7), (7, 30), (9, 9)])
def test_solve_is_the_normal_equations_for_wide_and_tall(rows, width):
    x, y = random(0, rows, width).double(), random(1, rows, 2).double()
    strengths = (1e-3, 1.0, 100.0)
    weight, bias = solve(x, y, strengths)
    ones = torch.cat([x, torch.ones(rows, 1)], 1)
    for s, strength in enumerate(strengths):
        penalty = strength * rows * torch.eye(width + 1, dtype=torch.float64)
        penalty[-1, -1] = 0  # the bias is free
        want = torch.linalg.solve(ones.T @ ones + penalty, ones.T @ y)
        torch.testing.assert_close(weight[s], want[:-1])
        torch.testing.assert_close(bias[s, 0], want[-1])


def test_ridge_chooses_for_each_parameter_as_a_loop_does():
    train, valid, test = features(0), features(10), features(20)
    valid.theta[:, 1] = 0  # the best strength of this parameter is then the largest
    strengths = (1e-4, 1e-1, 10.0, 1e4)
    fitted = Ridge(strengths).fit(train, valid)

    x = train.pooled.double()
    mean, std = x.mean(0), x.std(0, correction=0)
    z = [((f.pooled.double() - mean) / std).clamp(-5, 5) for f in (train, valid, test)]
    for p in range(2):
        y = train.theta[:, p].double()
        best = (math.inf, 0.0, torch.empty(0))
        for strength in strengths:
            centred = z[0] - z[0].mean(0)
            gram = centred.T @ centred / len(y) + strength * torch.eye(12)
            w = torch.linalg.solve(gram, centred.T @ (y - y.mean()) / len(y))
            error = float((((z[1] - z[0].mean(0)) @ w + y.mean() - valid.theta[:, p]) ** 2).mean())
            best = min(best, (error, strength, (z[2] - z[0].mean(0)) @ w + y.mean()), key=lambda b: b[0])
        assert fitted.chosen["strength"][p] == best[1]
        assert fitted.chosen["valid_mse"][p] == pytest.approx(best[0])
        torch.testing.assert_close(fitted(test)[:, p].double(), best[2], rtol=1e-5, atol=1e-5)
    assert fitted.chosen["strength"][1] == 1e4 != fitted.chosen["strength"][0]


@pytest.mark.parametrize("probe", [Ridge(), KNN(), KNN("euclidean")])
def test_one_window_is_predicted_without_the_others(probe):
    fitted = probe.fit(features(0), features(10))
    test = features(20)
    one = Features(test.tokens[:1], test.theta[:1], test.trajectory[:1])
    blank = Features(test.tokens, torch.zeros_like(test.theta), test.trajectory)
    torch.testing.assert_close(fitted(test)[:1], fitted(one))
    torch.testing.assert_close(fitted(test), fitted(blank), rtol=0, atol=0)
    assert fitted(test).dtype == torch.float32


def test_ridge_is_not_ruined_by_one_wild_value():
    train, valid, test = features(0, 200), features(10), features(20)
    test.tokens[0, 0, 0] = 1e12
    assert Ridge().fit(train, valid)(test).abs().max() < 20


def test_ridge_refuses_a_strength_of_zero():
    with pytest.raises(UserError, match="strengths"):
        Ridge((0.0, 1.0))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_knn_is_a_loop_over_neighbours(metric):
    train, valid, test = (features(seed, rows=32, noise=2.0) for seed in (0, 10, 20))
    fitted = KNN(metric, most=8).fit(train, valid)
    x = train.pooled.double()
    mean, std = x.mean(0), x.std(0, correction=0)
    stored = ((x - mean) / std).clamp(-5, 5)

    def predict(f, k, p):
        out = []
        for row in ((f.pooled.double() - mean) / std).clamp(-5, 5):
            if metric == "cosine":
                distance = [1 - float(row @ s / row.norm() / s.norm()) for s in stored]
            else:
                distance = [float((row - s).norm()) for s in stored]
            near = sorted(range(len(stored)), key=distance.__getitem__)[:k]
            weight = [1 / distance[i] for i in near]
            out.append(sum(w * float(train.theta[i, p]) for w, i in zip(weight, near, strict=True)) / sum(weight))
        return torch.tensor(out)

    for p in range(2):
        errors = [float((predict(valid, k, p) - valid.theta[:, p]).square().mean()) for k in range(1, 9)]
        k = fitted.chosen["k"][p]
        assert k == 1 + errors.index(min(errors))
        assert fitted.chosen["valid_mse"][p] == pytest.approx(min(errors), rel=1e-4)
        torch.testing.assert_close(fitted(test)[:, p], predict(test, k, p), rtol=1e-4, atol=1e-4)


def test_knn_returns_a_stored_row_for_itself():
    train = features(0)
    torch.testing.assert_close(KNN("euclidean").fit(train, features(10))(train), train.theta, rtol=1e-3, atol=1e-3)


def test_knn_with_few_rows_and_an_unknown_metric():
    train = features(0, rows=8)
    assert KNN(most=64).fit(train, features(10))(train).isfinite().all()
    with pytest.raises(UserError, match="cosine, euclidean"):
        KNN("manhattan")  # type: ignore[arg-type]


def test_ridge_cv_finds_a_linear_law_and_says_so():
    f = features(0, rows=200)
    result = ridge_cv(f.pooled, f.theta, f.trajectory)
    assert result["r2"].min() > 0.9 and result["strengths"].shape == (5, 2)
    mse = (result["predictions"] - f.theta).square().mean(0)
    torch.testing.assert_close(result["mse"], mse)
    torch.testing.assert_close(result["r2"], 1 - mse / f.theta.var(0, correction=0))


def test_ridge_cv_never_shares_a_trajectory_between_folds():
    """Windows of a trajectory have the same features and a random label: only a leak could predict it."""
    x = random(0, 30, 64).repeat_interleave(8, 0)
    y = random(1, 30, 2).repeat_interleave(8, 0)
    groups = torch.arange(30).repeat_interleave(8)
    assert ridge_cv(x, y, groups)["r2"].max() <= 0
    leak = ridge_cv(x, y, torch.arange(240))  # windows as their own groups: the leak that the test must be able to see
    assert leak["r2"].min() > 0.9


def test_ridge_cv_predicts_a_fold_without_its_labels():
    f = features(0, rows=80, noise=2.0)
    before = ridge_cv(f.pooled, f.theta, f.trajectory)
    held = before["predictions"][:4].clone()
    changed = f.theta.clone()
    changed[:4] += 100  # the whole trajectory 0
    after = ridge_cv(f.pooled, changed, f.trajectory)["predictions"]
    assert torch.equal(after[:4], held)
    assert not torch.allclose(after[4:], before["predictions"][4:])


def test_ridge_cv_is_a_nested_loop():
    f = features(0, rows=60, noise=2.0)
    strengths = (1e-3, 1e-1, 1.0, 10.0)
    result = ridge_cv(f.pooled, f.theta, f.trajectory, strengths, folds=3)
    x = f.pooled.double()
    x = ((x - x.mean(0)) / x.std(0, correction=0)).clamp(-5, 5)
    y, window = f.theta.double(), torch.arange(60)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    folds = [torch.isin(f.trajectory, torch.arange(15)[order % 3 == k]) for k in range(3)]
    for a in range(3):
        inner = [b for b in range(3) if b != a]
        for p in range(2):
            errors = []
            for s in range(len(strengths)):
                total = 0.0
                for b in inner:
                    kept = window[~folds[a] & ~folds[b]]
                    weight, bias = solve(x[kept], y[kept], strengths)
                    total += float(((x[folds[b]] @ weight[s] + bias[s] - y[folds[b]])[:, p] ** 2).sum())
                errors.append(total)
            s = errors.index(min(errors))
            assert result["strengths"][a, p] == pytest.approx(strengths[s])
            weight, bias = solve(x[~folds[a]], y[~folds[a]], strengths)
            want = (x[folds[a]] @ weight[s] + bias[s])[:, p]
            torch.testing.assert_close(result["predictions"][folds[a], p].double(), want, rtol=1e-5, atol=1e-5)


def test_ridge_cv_needs_three_trajectories_and_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    f = features(0, rows=12)
    assert ridge_cv(f.pooled, f.theta, f.trajectory)["predictions"].isfinite().all()  # three trajectories, three folds
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(UserError, match="three or more, not 2"):
        ridge_cv(f.pooled, f.theta, f.trajectory.clamp_max(1))
