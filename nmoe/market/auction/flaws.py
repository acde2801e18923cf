"""Flaws: what can be wrong with one clearing of one market, and how it is found.

Source: section 2.6 of our specification of AERIA. The values are the amounts of the bids: users bid the truth, but for one who deviates.
The draw is the same with the truth and with the deviation, so what is found holds for that draw, not on average.

Departures: gains count from ``TOLERANCE`` times the larger of 1 and the user's value. Who demands more than all of the capacity envies
nobody: no outcome can serve it. Users compare their price with those of winners of their own provider.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator

from nmoe.market.auction.base import Bids, Mechanism, Outcome, Supply

TOLERANCE = 1e-9
RANDOM_BIDS = 10


class Flaw(StrEnum):
    """What is wrong."""

    CHANGING = "the same bids and draw give another outcome"
    MALFORMED = "losers pay, a price or payment is no number, or someone is served who needs nothing or cannot be served"
    OVER_CAPACITY = "more units are sold than there are"
    DEFICIT = "a winner pays less than its units cost the provider"
    NEGATIVE_UTILITY = "a winner pays more than it bid"
    ENVY = "a user would rather have another's price"
    PROFITABLE_DEVIATION = "a user gains by bidding something else than its value"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trial:
    """A market and a draw to try a mechanism on.

    Attributes:
        bids: the amounts are the users' values.
        supply: what is sold.
        draw: in [0, 1).
    """

    bids: Bids
    supply: Supply
    draw: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Finding:
    """A flaw, where it was found.

    Attributes:
        flaw: what is wrong.
        trial: in which market, with which draw.
        detail: who, and in numbers.
    """

    flaw: Flaw
    trial: Trial
    detail: str

    def __str__(self) -> str:
        bids, supply = self.trial.bids, self.trial.supply
        lines = [f"{self.flaw}: {self.detail}"]
        lines.append(f"  draw {self.trial.draw!r}, capacity {supply.capacity!r}, unit cost {supply.unit_cost!r}")
        for row, name in enumerate(bids.ids):
            provider = "" if bids.provider is None else f", provider {bids.provider[row]}"
            lines.append(f"  {name}: value {float(bids.amount[row])!r}, demand {float(bids.demand[row])!r}{provider}")
        return "\n".join(lines)


def with_amount(bids: Bids, user: int, amount: float) -> Bids:
    """Return bids in which one user, by its row, offers another amount."""
    changed = bids.amount.copy()
    changed[user] = amount
    return replace(bids, amount=changed)


def utilities(bids: Bids, outcome: Outcome) -> Float[ndarray, " user"]:
    """Return what each user gains: its value less its payment if served, less its payment else."""
    return np.asarray(np.where(outcome.served, bids.amount, 0.0) - outcome.payment)


def find_flaws(mechanism: Mechanism, trial: Trial) -> Iterator[Finding]:
    """Yield what is wrong with the outcome of truthful bids, envy included; deviations apart.

    Args:
        mechanism: to be checked.
        trial: where.
    """
    bids, supply = trial.bids, trial.supply
    outcome = mechanism.clear(bids, supply, draw=trial.draw)
    again = mechanism.clear(bids, supply, draw=trial.draw)
    if not (np.array_equal(outcome.reason, again.reason) and np.array_equal(outcome.payment, again.payment)):
        yield Finding(flaw=Flaw.CHANGING, trial=trial, detail=f"pays {outcome.payment.tolist()}, then {again.payment.tolist()}")
    served, paid, wide = outcome.served, outcome.payment, 1 + TOLERANCE
    servable = (bids.demand > 0) & np.isfinite(bids.demand)
    demand = np.where(served & servable, bids.demand, 0.0)
    sold = float(demand.sum())
    if not sold <= supply.capacity * wide:
        yield Finding(flaw=Flaw.OVER_CAPACITY, trial=trial, detail=f"{sold!r} units")
    costs = supply.unit_cost * demand
    slack = TOLERANCE * np.maximum(1, bids.amount)
    for flaw, wrong in (
        (Flaw.MALFORMED, ~np.isfinite(paid) | np.isnan(outcome.unit_price) | (~served & (paid != 0)) | (served & ~servable)),
        (Flaw.DEFICIT, served & (paid < costs - slack)),
        (Flaw.NEGATIVE_UTILITY, served & (paid > bids.amount + slack)),
    ):
        if wrong.any():
            row = int(np.argmax(wrong))
            detail = f"{bids.ids[row]} pays {float(paid[row]):.9g} for {float(demand[row]):.9g} units"
            yield Finding(flaw=flaw, trial=trial, detail=detail)
    yield from _find_envy(trial, outcome)


def _find_envy(trial: Trial, outcome: Outcome) -> Iterator[Finding]:
    """Yield an envious user: one who would gain at the price of a winner of the same provider."""
    bids = trial.bids
    own, served = utilities(bids, outcome), np.flatnonzero(outcome.served)
    demanding = np.flatnonzero((bids.demand > 0) & np.isfinite(bids.demand) & (bids.demand <= trial.supply.capacity * (1 + TOLERANCE)))
    if not served.size or not demanding.size:
        return
    envied = bids.amount[demanding, None] - np.outer(bids.demand[demanding], outcome.unit_price[served])  # [demanding, served]
    if bids.provider is not None:
        envied = np.where(bids.provider[demanding, None] == bids.provider[served], envied, -np.inf)
    excess = envied - own[demanding, None] - TOLERANCE * np.maximum(1, bids.amount[demanding, None])
    if (excess > 0).any():
        row, column = np.unravel_index(int(excess.argmax()), excess.shape)
        user, winner = int(demanding[row]), int(served[column])
        detail = (
            f"{bids.ids[user]} has {float(own[user]):.9g} and at {bids.ids[winner]}'s price of {float(outcome.unit_price[winner]):.9g} "
            f"per unit would have {float(envied[row, column]):.9g}"
        )
        yield Finding(flaw=Flaw.ENVY, trial=trial, detail=detail)


def deviations(trial: Trial, user: int, generator: Generator) -> Float[ndarray, " deviation"]:
    """Return the total bids that a user, by its row, may try instead of its value.

    Every other unit bid, also a little below and above; its own times 0.999 and 1.001; nothing, a huge one, and ten random ones.

    Args:
        trial: the market.
        user: with a demand above 0.
        generator: of the random bids.
    """
    bids, demand = trial.bids, trial.bids.demand[user]
    others = np.delete(np.arange(len(bids)), user)
    others = others[(bids.demand[others] > 0) & np.isfinite(bids.demand[others])]
    rivals = bids.amount[others] / bids.demand[others] * demand
    own, highest = bids.amount[user], max(1.0, float(rivals.max(initial=bids.amount[user])))
    random = highest * generator.random(RANDOM_BIDS) * 1.5
    fixed = np.array([0.0, own * 0.999, own * 1.001, own * 0.5, own * 2, highest * 1e4, trial.supply.unit_cost * demand])
    return np.concatenate([rivals, rivals * 0.999, rivals * 1.001, fixed, random])


def find_deviation(mechanism: Mechanism, trial: Trial, generator: Generator, users: list[int]) -> tuple[Finding | None, int]:
    """Search for a bid with which one of some users gains.

    Args:
        mechanism: to be checked.
        trial: where.
        generator: of random bids.
        users: rows of those who deviate, one at a time.

    Returns:
        The deviation with the largest gain, if any gains, and how many bids were tried.
    """
    bids = trial.bids
    truth = utilities(bids, mechanism.clear(bids, trial.supply, draw=trial.draw))
    best, found, tried = 0.0, None, 0
    for user in users:
        value, slack = bids.amount[user], TOLERANCE * max(1.0, float(bids.amount[user]))
        for amount in deviations(trial, user, generator).tolist():
            outcome = mechanism.clear(with_amount(bids, user, amount), trial.supply, draw=trial.draw)
            tried += 1
            gained = (float(value) if outcome.served[user] else 0.0) - float(outcome.payment[user])
            gain = gained - float(truth[user])
            if gain > max(slack, best):
                best = gain
                detail = f"{bids.ids[user]} bids {amount!r} and has {gained:.9g}, with the truth {float(truth[user]):.9g}"
                found = Finding(flaw=Flaw.PROFITABLE_DEVIATION, trial=trial, detail=detail)
    return found, tried
