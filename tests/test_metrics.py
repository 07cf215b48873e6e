import math

import numpy as np
import pytest
import torch
from torchmetrics.functional import mean_absolute_error, mean_squared_error, r2_score

from physrep.metrics import between_within, bootstrap, draw, effective_rank, errors, interval, paired, scores
from physrep.results import Row, inverse

N = 12


def row(seed=0, parameter="Reynolds", skip=0, noise=0.5):
    """A row of N - skip trajectories and its windows' predictions and truths."""
    rng = np.random.default_rng([seed, len(parameter)])
    truth = np.repeat([-1.0, 0.0, 1.0], N // 3)
    counts = 1 + np.arange(N) % 3
    guesses = [z + noise * rng.standard_normal(n) for z, n in zip(truth, counts, strict=True)]
    scale, center, spread = ("log10", 4.5, 0.5) if parameter == "Reynolds" else ("linear", 2.0, 3.0)

    def units(z):
        return 10 ** (center + spread * z) if scale == "log10" else center + spread * z

    made = Row(
        data="d", objective="jepa", encoder="conv", probe="ridge", seed=seed, split="test", parameter=parameter,
        scale=scale, center=center, spread=spread, metric="mse", value=0.0, n=int(counts[skip:].sum()),
        trajectories=list(range(skip, N)), windows=counts[skip:].tolist(), truth=truth[skip:].tolist(),
        prediction=[float(g.mean()) for g in guesses[skip:]],
        squared_error=[float(((g - z) ** 2).mean()) for g, z in zip(guesses, truth, strict=True)][skip:],
        absolute_error=[float(abs(units(g) - units(z)).mean()) for g, z in zip(guesses, truth, strict=True)][skip:],
        run="r", config="c", commit="", fingerprint="f", step=1, chosen={}, key=f"{seed}{parameter}",
    )  # fmt: skip
    windows = np.concatenate(guesses[skip:]), np.repeat(truth[skip:], counts[skip:])
    return made, *map(torch.tensor, windows)


@pytest.mark.parametrize("parameter", ["Reynolds", "Schmidt"])
def test_scores_of_the_sample_are_those_of_torchmetrics(parameter):
    made, guess, truth = row(parameter=parameter)
    by_window = scores(errors([made], range(N)), np.ones((1, N)))
    physical = [torch.tensor(inverse(z, made)) for z in (guess, truth)]
    assert by_window["mse"].item() == pytest.approx(mean_squared_error(guess, truth).item())
    assert by_window["r2"].item() == pytest.approx(r2_score(guess, truth).item())
    assert by_window["mae"].item() == pytest.approx(mean_absolute_error(*physical).item())
    guess, truth = torch.tensor(made.prediction), torch.tensor(made.truth)
    by_trajectory = scores(errors([made], range(N), "trajectory"), np.ones((1, N)))
    physical = [torch.tensor(inverse(z, made)) for z in (guess, truth)]
    assert by_trajectory["mse"].item() == pytest.approx(mean_squared_error(guess, truth).item(), rel=1e-5)
    assert by_trajectory["r2"].item() == pytest.approx(r2_score(guess, truth).item(), rel=1e-5)
    assert by_trajectory["mae"].item() == pytest.approx(mean_absolute_error(*physical).item(), rel=1e-5)


def test_scores_of_a_resample_are_those_of_its_repeated_windows():
    made, guess, truth = row()
    member = np.repeat(range(N), made.windows)
    counts = draw(N, 20, seed=3)
    found = scores(errors([made], range(N)), counts)
    for r, count in enumerate(counts):
        again = torch.tensor(np.repeat(np.arange(len(member)), count[member].astype(int)))
        assert found["mse"][0, r] == pytest.approx(mean_squared_error(guess[again], truth[again]).item())
        assert found["r2"][0, r] == pytest.approx(r2_score(guess[again], truth[again]).item())


def test_bootstrap_is_a_loop_over_seeds_and_trajectories():
    made = [row(seed)[0] for seed in range(3)]
    counts = draw(N, 50)
    found = bootstrap(errors(made, range(N)), counts, seed=5)
    seeds = draw(3, 50, seed=6)
    for r in range(51):
        total = 0.0
        for s, one in enumerate(made):
            windows = [count * n for count, n in zip(counts[r], one.windows, strict=True)]
            total += seeds[r, s] * sum(w * e for w, e in zip(windows, one.squared_error, strict=True)) / sum(windows)
        assert found["mse"][r] == pytest.approx(total / seeds[r].sum())
    assert found["mse"][0] == pytest.approx(np.mean([np.average(m.squared_error, weights=m.windows) for m in made]))


def test_draws_are_seeded_and_the_first_is_the_sample():
    counts = draw(10, 400, seed=1)
    assert (counts[0] == 1).all() and (counts[1:].sum(1) == 9).all()
    assert (counts == draw(10, 400, seed=1)).all() and (counts != draw(10, 400, seed=2)).any()
    assert abs(counts[1:].mean() - 0.9) < 1e-12 and np.ptp(counts[1:].mean(0)) < 0.3
    assert (draw(1, 5) == 1).all()


def test_variance_of_a_mean_of_few_is_unbiased():
    """With n - 1 draws the bootstrap's variance of a mean is s^2 / n exactly, also for three seeds."""
    values = np.array([0.1, 0.4, 0.9])
    counts = draw(3, 200_000)
    means = counts[1:] @ values / counts[1:].sum(1)
    assert means.var() == pytest.approx(values.var(ddof=1) / 3, rel=0.02)


@pytest.mark.parametrize("errors_of", ["exponential", "chi2"])
def test_coverage_of_the_interval(errors_of):
    """Of 600 experiments with 96 trajectories, 95 % intervals hold the true error in 92 to 98 %."""
    rng = np.random.default_rng(0)
    x = rng.exponential(size=(600, 96)) if errors_of == "exponential" else rng.standard_normal((600, 96)) ** 2
    counts = draw(96, 2000)[1:]
    low, high = np.quantile(x @ counts.T / counts.sum(1), [0.025, 0.975], axis=1)
    assert 0.92 <= np.mean((low <= 1) & (high >= 1)) <= 0.98


def test_coverage_with_two_parameters_of_the_same_trajectories():
    """Errors of a trajectory's parameters go together; the interval of their average knows it, through rows and all."""
    rng = np.random.default_rng(1)
    counts, hits = draw(96, 500), 0
    base = row()[0]
    for _ in range(300):
        common = rng.exponential(size=96)
        samples = []
        for _ in range(2):
            found = errors([base], range(N))
            squared = (0.7 * common + 0.3 * rng.exponential(size=96))[None]
            samples.append(bootstrap(type(found)(squared, squared, squared, np.full((1, 96), 4.0)), counts)["mse"])
        got = interval(np.mean(samples, axis=0))
        assert got.value == pytest.approx(np.mean([s[0] for s in samples]))
        hits += got.low <= 1 <= got.high
    assert 0.91 <= hits / 300 <= 0.98


def test_pairing_narrows_the_interval_and_keeps_the_difference():
    hard = np.linspace(0.1, 3, N)[None] ** 2  # some trajectories are hard for all

    def cell(shift):
        return type(found)(hard + shift, hard, found.truth, np.ones((1, N)))

    found = errors([row()[0]], range(N))
    counts = draw(N, 2000)
    got = interval(paired([cell(0.5)], [cell(0.7)], counts))
    assert got.value == pytest.approx(-0.2) and got.low == pytest.approx(-0.2) and got.high == pytest.approx(-0.2)
    alone = interval(bootstrap(cell(0.5), counts)["mse"])
    assert alone.high - alone.low > 1


def test_pairs_are_of_shared_trajectories():
    whole, part = row(0)[0], row(1, skip=5)[0]
    got = paired([errors([whole], range(N))], [errors([part], range(N))], draw(N, 10))[0]
    a = np.average(whole.squared_error[5:], weights=whole.windows[5:])
    assert got == pytest.approx(a - np.average(part.squared_error, weights=part.windows))


def test_a_difference_is_the_average_over_parameters():
    a = [errors([row(0, p)[0]], range(N)) for p in ("Reynolds", "Schmidt")]
    b = [errors([row(1, p)[0]], range(N)) for p in ("Reynolds", "Schmidt")]
    counts = draw(N, 30)
    want = [bootstrap(x, counts)["mse"] - bootstrap(y, counts)["mse"] for x, y in zip(a, b, strict=True)]
    assert paired(a, b, counts) == pytest.approx(np.mean(want, axis=0))


def test_r2_of_equal_truth_is_undefined():
    found = errors([row()[0]], range(N))
    same = type(found)(found.squared, found.absolute, np.full((1, N), 0.3), found.weight)
    got = interval(bootstrap(same, draw(N, 10))["r2"])
    assert math.isnan(got.value) and math.isnan(got.low) and math.isnan(got.high)


def test_effective_rank_of_known_spectra():
    q, _ = torch.linalg.qr(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)))
    assert effective_rank(q).item() == pytest.approx(8, rel=1e-4)
    sigma = torch.tensor([4.0, 2, 1, 1, 0, 0, 0, 0])
    share = [s / 8 for s in (4, 2, 1, 1)]
    assert effective_rank(q * sigma).item() == pytest.approx(math.exp(-sum(s * math.log(s) for s in share)), rel=1e-3)
    assert effective_rank(torch.ones(64, 1) @ torch.randn(1, 8)).item() == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.zeros(10, 4)).item() == 1
    assert effective_rank(q.bfloat16()).isfinite()


def test_between_and_within_are_loops():
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    trajectory = torch.arange(20) % 4 * 10
    between, within = between_within(x, trajectory)
    groups = [x[trajectory == t].double().numpy() for t in (0, 10, 20, 30)]
    means = np.stack([g.mean(0) for g in groups])
    assert between.item() == pytest.approx(math.sqrt(means.var(0, ddof=1).mean()), rel=1e-5)
    pooled = sum(((g - g.mean(0)) ** 2).sum(0) for g in groups) / (20 - 4)
    assert within.item() == pytest.approx(math.sqrt(pooled.mean()), rel=1e-5)


def test_collapse_is_seen_between_trajectories():
    trajectory = torch.arange(40) // 10
    between, within = between_within(torch.randn(40, 5), trajectory)
    assert between < within
    between, within = between_within(torch.randn(4, 5)[trajectory], trajectory)
    assert within < 1e-6 < between
