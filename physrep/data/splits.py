"""Which trajectories train, validate and test: by held-out physics, with what starts from one state on one side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from physrep.data.well import Array
from physrep.errors import UserError

SPLITS = ("train", "valid", "test")
OUT, TRAIN, VALID, TEST = -1, 0, 1, 2
SHARES = {VALID: 0.15, TEST: 0.2}  # of the parameters' combinations, and of starting states that recur
FEW = 5  # values, of which the lowest is needed for training
TAIL = 0.1  # of the trajectories lie beyond an extreme value at least


def combinations(theta: Array) -> Array:
    """Number the combinations of parameters [N, P]: [N]."""
    return np.asarray(np.unique(theta, axis=0, return_inverse=True)[1].reshape(-1))


def holdout(theta: Array) -> Array:
    """Give whole combinations of parameters [N, P] to valid and test, such that train has every single value: [N]."""
    side = np.full(len(theta), TRAIN)
    _take(side, theta, TEST)
    _take(side, theta, VALID)
    return side


def extrapolate(theta: Array) -> Array:
    """Give the extreme values of every parameter [N, P] to test and a share of the other trajectories to valid: [N].

    Extreme are the highest values, a tenth of the trajectories at least, and the lowest where there are five or more.
    Valid is spread over the combinations that train has: nothing is chosen by what lies outside.
    """
    side = np.full(len(theta), TRAIN)
    for column in theta.T:
        values, counts = np.unique(column, return_counts=True)
        if len(values) == 1:
            continue
        need = TAIL * len(column)
        side[column >= values[::-1][np.searchsorted(counts[::-1].cumsum(), need)]] = TEST
        if len(values) >= FEW:
            side[column <= values[np.searchsorted(counts.cumsum(), need)]] = TEST
    inside = (side == TRAIN).nonzero()[0]
    if len(inside):
        side[inside[labelled(theta[inside], SHARES[VALID])]] = VALID
    return side


def _take(side: Array, theta: Array, to: int) -> None:
    """Move a share of train's combinations elsewhere, in an order that is the same everywhere, keeping every value."""
    member = combinations(theta)
    left = np.unique(member[side == TRAIN])
    wanted = max(round(SHARES[to] * len(left)), 1)
    recurring = [a for a in theta.T if len(np.unique(a[side == TRAIN])) < len(left)]
    order = np.random.default_rng(to).permutation(left).tolist()
    for _ in range(wanted):
        fit = [c for c in order if all(_recurs(a, member == c, side == TRAIN) for a in recurring)]
        if not fit:
            break
        alike = [sum(int(np.isin(a[member == c], a[side == to]).any()) for a in theta.T) for c in fit]
        best = fit[int(np.argmin(alike))]  # so that every parameter takes several values
        side[(member == best) & (side == TRAIN)] = to
        order.remove(best)


def _recurs(values: Array, here: Array, train: Array) -> bool:
    """Say whether train has the values elsewhere."""
    return bool(np.isin(values[here & train], values[train & ~here]).all())


def together(side: Array, starts: Sequence[str]) -> Array:
    """Leave out trajectories so that none of another side starts from the same state: [N] -> [N].

    A state that recurs on several sides is given to one of them, by the shares of valid and test.
    """
    side, member = side.copy(), np.unique(np.array(starts), return_inverse=True)[1]
    recurs = [m for m in np.unique(member) if len(np.unique(side[member == m])) > 1]
    order = np.random.default_rng(0).permutation(recurs).astype(int)
    n_test, n_valid = (max(round(SHARES[to] * len(order)), 1) for to in (TEST, VALID))
    for place, state in enumerate(order):
        to = TEST if place < n_test else VALID if place < n_test + n_valid else TRAIN
        side[(member == state) & (side != to)] = OUT
    return side


def share_out(kind: str, theta: Array, starts: Sequence[str], name: str) -> list[Array]:
    """Return the numbers of train's, valid's and test's trajectories, of all that have parameters theta [N, P].

    Raises UserError where one of them gets none.
    """
    side = together(holdout(theta) if kind == "holdout" else extrapolate(theta), starts)
    found = [(side == to).nonzero()[0] for to in (TRAIN, VALID, TEST)]
    for split, numbers in zip(SPLITS, found, strict=True):
        if not len(numbers):
            raise UserError(f"data.split={kind}: leaves {split} no trajectory of {name}, which has "
                            f"{len(np.unique(combinations(theta)))} combinations of parameters that start from "
                            f"{len(set(starts))} states; take data.split=well")  # fmt: skip
    return found


def labelled(theta: Array, share: float, seed: int = 0) -> Array:
    """Choose a share of trajectories with parameters [N, P], evenly over their combinations; more holds what less does.

    Returns their numbers, rising, at least one; each seed draws others.
    """
    member, rng = combinations(theta), np.random.default_rng(seed)
    shuffled = rng.permutation(len(member))
    turn = np.empty(len(member), int)  # of each in its combination
    for combination in np.unique(member):
        here = shuffled[member[shuffled] == combination]
        turn[here] = np.arange(len(here))
    order = np.lexsort((shuffled.argsort(), rng.permutation(member.max() + 1)[member], turn))
    return np.sort(order[: max(int(np.ceil(share * len(member) - 1e-9)), 1)])
