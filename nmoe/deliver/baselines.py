"""Baselines: which model a user gets, and who is admitted; the planner's own rules and those that it is compared with.

Source: G. Qu, T. Li, Q. Chen, X. Chen, S. Zhou, arXiv 2512.20946, for what is decided. A need is the least share of the bandwidth with
which a user can be served, infinite where it cannot.

Optimal provisioning and selection: the model with the least need for each user; then users by ascending need, as many as fit. Any n users
that can be served together need at least as much as the n with the least needs, so no other choice serves more.

Departures: the theorem and all the baselines are ours; the paper's, but for downloading before inferring, were not found.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from numpy.random import Generator

Needs = Float[ndarray, "user slot"]
Need = Float[ndarray, " user"]

WHOLE = 1 + 4e-12  # of the bandwidth, and what rounding may add to needs that are just all of it; who gives it out takes that off again
FINE = 1e6  # scale of the knapsack's row: the solver's tolerance, 1e-6, becomes 1e-12 of the bandwidth


class Provision(ABC):
    """A rule that gives each user one of the models it accepts.

    Attributes:
        fixes: what a user is given may not be what it could have had for less, so that it alone says why the user is not served.
    """

    fixes: ClassVar[bool] = True

    @abstractmethod
    def provide(self, needs: Needs, total_bytes: Needs, *, generator: Generator | None) -> Int[ndarray, " user"]:
        """Return each user's model, as the place in its list of models.

        Args:
            needs: shares, by user and place in its list; infinite where a model cannot be had, and beyond the end of the list.
            total_bytes: of the models; 0 beyond the end of the list.
            generator: for what is drawn.

        Raises:
            ValueError: when something is to be drawn and there is no generator.
        """


class Admission(ABC):
    """A rule that admits users."""

    @abstractmethod
    def admit(self, need: Need, weight: Need, *, generator: Generator | None) -> Need:
        """Return each user's share of the bandwidth: 0 of those not admitted, of the others at least their need; ``WHOLE`` in all at most.

        Args:
            need: share; infinite where a user cannot be served.
            weight: worth of serving each user.
            generator: for what is drawn.

        Raises:
            ValueError: when something is to be drawn and there is no generator.
        """


@final
@dataclass(frozen=True, slots=True)
class LeastNeed(Provision):
    """The model with the least need; the first of equals."""

    fixes: ClassVar[bool] = False

    def provide(self, needs: Needs, total_bytes: Needs, *, generator: Generator | None) -> Int[ndarray, " user"]:
        return np.asarray(needs.argmin(1))


@final
@dataclass(frozen=True, slots=True)
class AnyModel(Provision):
    """A model drawn out of the user's list, whatever it needs."""

    def provide(self, needs: Needs, total_bytes: Needs, *, generator: Generator | None) -> Int[ndarray, " user"]:
        return np.asarray(_drawn(generator).integers((total_bytes > 0).sum(1)))


@final
@dataclass(frozen=True, slots=True)
class BySize(Provision):
    """The largest (or smallest) model that all of the bandwidth could bring in time; where there is none, the one with the least need."""

    largest: bool

    def provide(self, needs: Needs, total_bytes: Needs, *, generator: Generator | None) -> Int[ndarray, " user"]:
        size = total_bytes if self.largest else -total_bytes
        liked = np.where(needs <= WHOLE, size, -np.inf).argmax(1)
        return np.asarray(np.where((needs <= WHOLE).any(1), liked, needs.argmin(1)))


@final
@dataclass(frozen=True, slots=True)
class AscendingNeed(Admission):
    """Users by ascending need while all that they need fits: as many as possible."""

    def admit(self, need: Need, weight: Need, *, generator: Generator | None) -> Need:
        order = need.argsort(kind="stable")
        fits = np.cumsum(need[order]) <= WHOLE
        shares = np.zeros_like(need)
        shares[order[fits]] = need[order[fits]]
        return shares


@final
@dataclass(frozen=True, slots=True)
class RandomOrder(Admission):
    """Users in a random order, each if what it needs is still there."""

    def admit(self, need: Need, weight: Need, *, generator: Generator | None) -> Need:
        shares, used = np.zeros_like(need), 0.0
        for user in _drawn(generator).permutation(len(need)):
            if used + need[user] <= WHOLE:
                shares[user] = need[user]
                used += need[user]
        return shares


@final
@dataclass(frozen=True, slots=True)
class EqualShares(Admission):
    """The same share for every user, served or not; those are served for whom it is enough."""

    def admit(self, need: Need, weight: Need, *, generator: Generator | None) -> Need:
        share = 1 / len(need)
        return np.where(need <= share * WHOLE, np.maximum(need, share), 0.0)


@final
@dataclass(frozen=True, slots=True)
class Heaviest(Admission):
    """Users with the largest sum of weights: a 0/1 knapsack, solved exactly by branch and bound (HiGHS).

    NP-hard, so the time is no longer polynomial in the number of users in the worst case, unlike that of every other rule here. Sums of
    weights that differ by less than 1e-9 of the largest weight count as equal; but whoever still fits beside the others is served, too,
    however little it weighs.
    """

    def admit(self, need: Need, weight: Need, *, generator: Generator | None) -> Need:
        from scipy.optimize import LinearConstraint, milp  # 0.2 s, and few need it

        able = np.flatnonzero(need <= WHOLE)
        shares = np.zeros_like(need)
        if not able.size:
            return shares
        limits = [LinearConstraint(FINE * need[able][None], ub=FINE * WHOLE)]
        worth = -1e3 * weight[able] / weight[able].max()
        while True:
            solution = milp(worth, constraints=limits, integrality=np.ones(len(able)), bounds=(0, 1), options={"mip_rel_gap": 0.0})
            assert solution.x is not None, solution.message
            chosen = solution.x > 0.5
            used = sum(need[able][chosen].tolist())
            if used <= WHOLE:
                break
            limits.append(LinearConstraint(chosen[None].astype(float), ub=chosen.sum() - 1))  # a tolerance's width too much: not these
        for place in np.argsort(-weight[able], kind="stable"):
            if not chosen[place] and used + need[able][place] <= WHOLE:
                chosen[place] = True
                used += need[able][place]
        shares[able[chosen]] = need[able][chosen]
        return shares


def _drawn(generator: Generator | None) -> Generator:
    if generator is None:
        raise ValueError("a generator wanted, for this method draws, got none")
    return generator
