import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torchmetrics.functional import mean_absolute_error, mean_squared_error, r2_score

from physrep.metrics import (
    Errors,
    between_within,
    draw,
    effective_rank,
    errors,
    interval,
    paired,
    scores,
    states,
    student,
)
from physrep.results import Row, inverse
from physrep.tables import table

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
        data="d", objective="jepa", encoder="conv", variant="", probe="ridge", seed=seed, splits="well", split="test",
        shared=0, labels=1.0, layer="", parameter=parameter, plane=[], space={}, cost={},
        scale=scale, center=center, spread=spread, metric="mse", value=0.0, n=int(counts[skip:].sum()),
        trajectories=list(range(skip, N)), starts=[], windows=counts[skip:].tolist(), truth=truth[skip:].tolist(),
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
    counts = draw(range(N), 20, seed=3)
    found = scores(errors([made], range(N)), counts)
    for r, count in enumerate(counts):
        again = torch.tensor(np.repeat(np.arange(len(member)), count[member].astype(int)))
        assert found["mse"][0, r] == pytest.approx(mean_squared_error(guess[again], truth[again]).item())
        assert found["r2"][0, r] == pytest.approx(r2_score(guess[again], truth[again]).item())


def naive(groups, n):
    """An interval from loops over seeds and resamples, as the docstring of `interval` has it."""
    value = sum(np.mean([seed[0] for seed in group]) for group in groups)
    resampled = [sum(np.mean([seed[r] for seed in group]) for group in groups) for r in range(1, len(groups[0][0]))]
    low, high = np.quantile(resampled, [0.025, 0.975])
    wider = stats.t.ppf(0.975, n - 1) / stats.norm.ppf(0.975)
    total, terms = 0.0, 0.0
    for group in groups:
        if (size := len(group)) > 1:
            apart = np.array(group)[:, 1:] - np.mean(group, axis=0)[1:]
            explained = sum(np.var(seed) for seed in apart) / (size - 1)
            part = max(stats.sem([seed[0] for seed in group]) ** 2 - explained / size, 0)
            total, terms = total + part, terms + part**2 / (size - 1)
    seeds = stats.t.ppf(0.975, total**2 / terms) * math.sqrt(total) if total else 0
    return value - math.hypot(wider * (value - low), seeds), value + math.hypot(wider * (high - value), seeds)


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_the_interval_is_a_loop_over_seeds_and_resamples(seeds):
    made = [row(seed)[0] for seed in range(seeds)]
    counts = draw(range(N), 80)
    found = scores(errors(made, range(N)), counts)["mse"]
    for s, one in enumerate(made):
        for r in range(81):
            windows = [count * n for count, n in zip(counts[r], one.windows, strict=True)]
            mean = sum(w * e for w, e in zip(windows, one.squared_error, strict=True)) / sum(windows)
            assert found[s, r] == pytest.approx(mean)
    got = interval(found, n=N)
    assert got.value == pytest.approx(np.mean([np.average(m.squared_error, weights=m.windows) for m in made]))
    assert (got.low, got.high) == pytest.approx(naive([found], N), rel=1e-4)
    other = scores(errors([row(7)[0], row(8)[0]], range(N)), counts)["mse"]
    got = interval(found, -other, n=N)
    assert (got.low, got.high) == pytest.approx(naive([found, -other], N), rel=1e-4)


@pytest.mark.parametrize("freedom", [1, 1.3, 2, 3.7, 10, 63, 1e4])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_student_is_scipys(freedom, level):
    assert student(freedom, level) == pytest.approx(stats.t.ppf((1 + level) / 2, freedom), rel=1e-3)


def test_an_interval_ends_where_the_number_does():
    samples = np.array([[0.1, 0.11, 0.09], [0.9, 0.9, 0.9]])
    assert interval(samples, n=30).low < 0
    assert interval(samples, n=30, within=(0, np.inf)).low == 0


def test_draws_are_seeded_and_the_first_is_the_sample():
    counts = draw(range(10), 400, seed=1)
    assert (counts[0] == 1).all() and (counts[1:].sum(1) == 9).all()
    assert (counts == draw(range(10), 400, seed=1)).all() and (counts != draw(range(10), 400, seed=2)).any()
    assert abs(counts[1:].mean() - 0.9) < 1e-12 and np.ptp(counts[1:].mean(0)) < 0.3
    assert (draw([0], 5) == 1).all()


def test_trajectories_of_one_starting_state_are_drawn_together():
    counts = draw([0, 1, 0, 3, 1, 0], 300)
    assert (counts[0] == 1).all() and (counts[:, 0] == counts[:, 2]).all() and (counts[:, 0] == counts[:, 5]).all()
    assert (counts[1:, [0, 1, 3]].sum(1) == 2).all(), "n - 1 states"
    assert (counts[:, [0, 1, 3]] == draw(range(3), 300)).all()


def test_variance_of_a_mean_of_few_is_unbiased():
    """With n - 1 draws the bootstrap's variance of a mean is s^2 / n exactly, also for three seeds."""
    values = np.array([0.1, 0.4, 0.9])
    counts = draw(range(3), 200_000)
    means = counts[1:] @ values / counts[1:].sum(1)
    assert means.var() == pytest.approx(values.var(ddof=1) / 3, rel=0.02)


SHARES = {  # of the variance of one error: between seeds, between trajectories, of neither alone
    "seeds": (1, 1, 1), "equal": (1 / 16, 1, 0.1), "trajectories": (1e-4, 1, 0.1), "neither": (1 / 64, 0.3, 1),
}  # fmt: skip
TABLES, MANY = 1500, 64


def tables(seeds, shares, errors_of, rng):
    """Errors [tables, seeds, trajectories] with crossed effects about a mean of 5, and of how seeds are off."""
    make = rng.standard_normal if errors_of == "normal" else lambda shape: rng.exponential(size=shape) - 1
    seed, trajectory, both = np.sqrt(shares)
    off = seed * rng.standard_normal((TABLES, seeds, 1))
    return 5 + off + trajectory * make((TABLES, 1, MANY)) + both * make((TABLES, seeds, MANY)), off.mean((1, 2))


def coverage(found, truth):
    low, high = np.array(found).T
    return np.mean((low <= truth) & (truth <= high))


@pytest.mark.parametrize(
    ("seeds", "errors_of", "shares"),
    [
        (1, "exponential", "neither"), (3, "exponential", "seeds"), (3, "exponential", "equal"),
        (3, "exponential", "trajectories"), (3, "normal", "neither"), (5, "normal", "seeds"), (5, "normal", "equal"),
    ],
)  # fmt: skip
def test_coverage_is_92_to_98_percent(seeds, errors_of, shares):
    """95 % intervals hold the true error; of one seed, that seed's. Percentiles over three seeds do not."""
    made, off = tables(seeds, SHARES[shares], errors_of, np.random.default_rng(seeds))
    counts = draw(range(MANY), 300)
    samples = made @ counts.T / counts.sum(1)
    truth = 5 + (off if seeds == 1 else 0)
    ends = [interval(one, n=MANY) for one in samples]
    assert 0.92 <= coverage([(end.low, end.high) for end in ends], truth) <= 0.98
    if seeds == 3 and shares == "seeds":
        drawn = draw(range(3), 300)
        old = [np.quantile(((drawn.T * one).sum(0) / drawn.sum(1))[1:], [0.025, 0.975]) for one in samples]
        assert coverage(old, truth) < 0.85


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize(("seeds", "others"), [(3, 3), (3, 1)])
def test_coverage_of_differences_is_92_to_98_percent(seeds, others, shares):
    """Two objectives share how hard trajectories are, and no more; of the second one's only seed, it is that seed's."""
    rng = np.random.default_rng(seeds + others)
    made, _ = tables(seeds, SHARES[shares], "normal", rng)
    more, off = tables(others, [SHARES[shares][0], 0.2, SHARES[shares][2]], "normal", rng)
    hard = rng.standard_normal((TABLES, 1, MANY))
    counts = draw(range(MANY), 300)
    a, b = ((errors + hard) @ counts.T / counts.sum(1) for errors in (made, more))
    ends = [interval(one, -other, n=MANY) for one, other in zip(a, b, strict=True)]
    truth = -off if others == 1 else 0
    assert 0.92 <= coverage([(end.low, end.high) for end in ends], truth) <= 0.98


def test_coverage_with_two_parameters_of_the_same_trajectories():
    """Errors of a trajectory's parameters go together; the interval of their average knows it, through rows and all."""
    rng = np.random.default_rng(1)
    counts, hits = draw(range(96), 500), 0
    found = errors([row()[0]], range(N))
    for _ in range(300):
        common = rng.exponential(size=96)
        samples = []
        for _ in range(2):
            squared = (0.7 * common + 0.3 * rng.exponential(size=96))[None]
            samples.append(scores(type(found)(squared, squared, squared, np.full((1, 96), 4.0)), counts)["mse"])
        got = interval(np.mean(samples, axis=0), n=96)
        assert got.value == pytest.approx(np.mean([s[0, 0] for s in samples]))
        hits += got.low <= 1 <= got.high
    assert 0.91 <= hits / 300 <= 0.98


def test_coverage_where_starting_states_recur_through_rows_and_table():
    """40 flows under four Schmidt numbers each: 160 trajectories, of which a flow's four share most of their error."""
    rng = np.random.default_rng(3)
    flow = np.tile(np.arange(40), 4)
    truth = np.repeat([-1.5, -0.5, 0.5, 1.5], 40)
    made = replace(
        row()[0], n=160, trajectories=[*range(160)], starts=flow.tolist(), windows=[1] * 160, truth=truth.tolist(),
        prediction=truth.tolist(), squared_error=[1.0] * 160, absolute_error=[0.0] * 160,
    )  # fmt: skip
    hits = {"with": 0, "without": 0}
    for _ in range(300):
        squared = 0.8 * rng.exponential(size=40)[flow] + 0.2 * rng.exponential(size=160)
        told = replace(made, squared_error=squared.tolist())
        for name, one in {"with": told, "without": replace(told, starts=[])}.items():
            (section,) = table([one], resamples=200)
            got = next(c for c in section.cells if (c.metric, c.by) == ("mse", "window"))
            hits[name] += got.low <= 1 <= got.high
    assert 0.92 <= hits["with"] / 300 <= 0.98
    assert hits["without"] / 300 < 0.75, "which is why"


def test_one_starting_state_allows_of_no_interval():
    same = [0] * N
    found = errors([row()[0]], range(N))
    got = interval(scores(found, draw(same, 50))["mse"], n=1)
    assert got.value > 0 and math.isnan(got.low) and math.isnan(got.high)
    got = paired([found], [errors([row(1)[0]], range(N))], draw(same, 50), same)
    assert math.isnan(got.low) and math.isnan(got.high)
    (section,) = table([replace(row()[0], plane=[], starts=same)], resamples=20)
    assert all(math.isnan(c.low) for c in section.cells) and "1 starting state is too few" in " ".join(section.notes)


def test_states_count_where_all_have_trajectories():
    """Three trajectories a state: one objective lacks the first two states, another begins amid the second."""
    starts = (np.arange(N) // 3 * 3).tolist()
    whole, some, fewer = row(0)[0], row(1, skip=6)[0], row(2, skip=4)[0]
    one, two, three = (errors([each], range(N)) for each in (whole, some, fewer))
    assert [states([each], starts) for each in (one, two, three)] == [4, 2, 3]
    assert states([one, two, three], starts) == 2
    told = [replace(each, starts=starts[-len(each.trajectories) :], objective=name, encoder="")
            for name, each in {"random": whole, "jepa": some, "views": fewer}.items()]  # fmt: skip
    (section,) = table(told, resamples=40)
    cells = {(c.objective, c.minus): c for c in section.cells if (c.metric, c.by) == ("mse", "window")}
    counts = draw(starts, 40)
    for name, each, n in (("random", one, 4), ("jepa", two, 2), ("views", three, 3)):
        want = interval(scores(each, counts)["mse"], n=n, within=(0, np.inf))
        assert (cells[name, ""].low, cells[name, ""].high) == (want.low, want.high)
    got, want = cells["views", "random"], paired([three], [one], counts, starts)
    assert (got.low, got.high) == (want.low, want.high)


def test_a_difference_knows_that_starting_states_recur():
    hard = np.random.default_rng(0).exponential(size=(1, N // 3)).repeat(3, axis=1)
    starts = np.arange(N // 3).repeat(3) * 3
    zero = np.zeros((1, N))
    a, b = (Errors(e, zero, zero, np.ones((1, N))) for e in (hard, hard / 2))
    got = paired([a], [b], draw(starts, 500), starts)
    assert got == interval(scores(a, draw(starts, 500))["mse"] / 2, n=N // 3)


def test_pairing_narrows_the_interval_and_keeps_the_difference():
    hard = np.linspace(0.1, 3, N)[None] ** 2  # some trajectories are hard for all

    def cell(shift):
        return type(found)(hard + shift, hard, found.truth, np.ones((1, N)))

    found = errors([row()[0]], range(N))
    counts = draw(range(N), 2000)
    got = paired([cell(0.5)], [cell(0.7)], counts, range(N))
    assert got.value == pytest.approx(-0.2) and got.low == pytest.approx(-0.2) and got.high == pytest.approx(-0.2)
    alone = interval(scores(cell(0.5), counts)["mse"], n=N)
    assert alone.high - alone.low > 1


def test_pairs_are_of_shared_trajectories():
    whole, part = row(0)[0], row(1, skip=5)[0]
    got = paired([errors([whole], range(N))], [errors([part], range(N))], draw(range(N), 10), range(N)).value
    a = np.average(whole.squared_error[5:], weights=whole.windows[5:])
    assert got == pytest.approx(a - np.average(part.squared_error, weights=part.windows))


def test_a_difference_is_the_average_over_parameters():
    names = ("Reynolds", "Schmidt")
    a = [errors([row(seed, p)[0] for seed in range(3)], range(N)) for p in names]
    b = [errors([row(seed, p)[0] for seed in (3, 4)], range(N)) for p in names]
    counts = draw(range(N), 30)
    one, two = (np.mean([scores(found, counts)["mse"] for found in side], axis=0) for side in (a, b))
    assert paired(a, b, counts, range(N)) == interval(one, -two, n=N)
    assert paired(a, b, counts, range(N)).value == pytest.approx(one[:, 0].mean() - two[:, 0].mean())


def test_r2_of_equal_truth_is_undefined():
    found = errors([row()[0]], range(N))
    same = type(found)(found.squared, found.absolute, np.full((1, N), 0.3), found.weight)
    got = interval(scores(same, draw(range(N), 10))["r2"], n=N)
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
