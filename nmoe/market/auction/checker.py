"""Checker: searches any mechanism for profitable deviations, envy, losses, over-capacity and chance that is not the draw's.

Source: section 2.6 of our specification of AERIA: the same draw for the truth and the deviation, bid families from the tame to the
adversarial, with demands, capacity and cost.

``print(check_mechanism(MyMechanism()))`` prints what was tried, what was found and the smallest market found that shows it.

Departures: what a mechanism does not claim (``truthful``, ``envy_free``) is counted, and no fault.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from numpy.random import Generator

from nmoe.market.auction.base import Bids, Mechanism, Supply
from nmoe.market.auction.coincidences import draw_coincidence
from nmoe.market.auction.expectation import midpoints
from nmoe.market.auction.families import FAMILIES, Family
from nmoe.market.auction.flaws import Finding, Flaw, Trial, find_deviation, find_flaws

LARGEST_MARKET = 12
COINCIDENCES = 2  # every second market is of round numbers, with a draw at which an estimate jumps
DEVIATORS = 1  # of the users of a market: many markets show more than many bids in one


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MechanismReport:
    """What a search found.

    Attributes:
        mechanism: its name.
        claims: the flaws that it claims to be free of, by being a mechanism or by its flags.
        markets: how many were cleared with truthful bids.
        deviations: how many other bids were tried.
        found: in how many markets each flaw was found.
        examples: for each flaw found the smallest market that shows it, of those that dropping users leads to.
    """

    mechanism: str
    claims: frozenset[Flaw]
    markets: int
    deviations: int
    found: dict[Flaw, int]
    examples: dict[Flaw, Finding]

    @property
    def passed(self) -> bool:
        """Whether no flaw was found that the mechanism claims to be free of."""
        return not any(self.found[flaw] for flaw in self.claims)

    def __str__(self) -> str:
        lines = [f"{self.mechanism}: {'no flaw found' if self.passed else 'FLAWED'}"]
        lines.append(f"{self.markets:,} markets, {self.deviations:,} deviations tried with the same draw")
        for flaw in Flaw:
            word = "claimed free" if flaw in self.claims else "not claimed"
            lines.append(f"  {self.found[flaw]:>7,} of {self.markets:,} markets ({word}): {flaw}")
        for flaw, example in self.examples.items():
            lines += ["", f"{'Counter-example' if flaw in self.claims else 'Example (not claimed)'}: {example}"]
        return "\n".join(lines)


def check_mechanism(
    mechanism: Mechanism, *, families: Mapping[str, Family] = FAMILIES, tries: int = 10_000, seed: int = 0
) -> MechanismReport:
    """Search a mechanism for flaws.

    Args:
        mechanism: any; its flags say what it claims.
        families: of unit values, by name; markets are drawn from each in turn, but for every second (``draw_coincidence``).
        tries: how many deviations to try at least, above 0; a market takes some 20 to 50.
        seed: of the markets, at least 0.

    Returns:
        What was found; the same for the same arguments.

    Raises:
        ValueError: when there is no family or nothing to try.
    """
    if tries < 1 or not families:
        raise ValueError(f"tries must be at least 1 and families at least one, got {tries} and {len(families)}")
    generator = np.random.default_rng(seed)
    kinds = list(families.values())
    found, first = dict.fromkeys(Flaw, 0), dict[Flaw, Finding]()
    markets = tried = 0
    while tried < tries:
        coincides = markets % COINCIDENCES == COINCIDENCES - 1
        trial = draw_coincidence(generator) if coincides else draw_trial(kinds[markets % len(kinds)], generator)
        users = generator.permutation(np.flatnonzero((trial.bids.demand > 0) & np.isfinite(trial.bids.demand)))[:DEVIATORS].tolist()
        deviation, more = find_deviation(mechanism, trial, generator, users)
        findings = {finding.flaw: finding for finding in find_flaws(mechanism, trial)}
        if deviation is not None:
            findings[deviation.flaw] = deviation
        for flaw, finding in findings.items():
            found[flaw] += 1
            if flaw not in first or len(finding.trial.bids) < len(first[flaw].trial.bids):
                first[flaw] = finding
        markets, tried = markets + 1, tried + more
    claims = set(Flaw)
    claims -= set() if mechanism.truthful else {Flaw.PROFITABLE_DEVIATION}
    claims -= set() if mechanism.envy_free else {Flaw.ENVY}
    return MechanismReport(
        mechanism=mechanism.name,
        claims=frozenset(claims),
        markets=markets,
        deviations=tried,
        found=found,
        examples={flaw: shrink(mechanism, finding) for flaw, finding in first.items()},
    )


def draw_trial(family: Family, generator: Generator) -> Trial:
    """Draw a market of at most 12 users: one unit each or other demands, a capacity or none, a cost or none, one provider or two.

    One user in thirty needs nothing, one in thirty cannot be served.

    Args:
        family: of the unit values.
        generator: of everything else, too.
    """
    users = int(generator.integers(1, LARGEST_MARKET + 1))
    unit_value = family(users, generator)
    demand = (np.ones(users), generator.uniform(0.1, 3, users), generator.lognormal(0, 1.5, users))[int(generator.integers(3))]
    special = generator.random(users)
    demand = np.where(special < 1 / 30, 0.0, np.where(special > 29 / 30, np.inf, demand))
    finite = np.where(np.isfinite(demand), demand, 0.0)
    capacity = (np.inf, float(finite.sum()) * generator.random(), float(generator.integers(0, 6)))[int(generator.integers(3))]
    unit_cost = float(np.median(unit_value)) * generator.random() if generator.random() < 0.5 else 0.0
    bids = Bids(
        ids=tuple(f"user {place + 1}" for place in range(users)),
        amount=unit_value * np.where(finite > 0, finite, 1.0),
        demand=demand,
        provider=generator.integers(0, 2, users) if generator.random() < 0.25 else None,
    )
    return Trial(bids=bids, supply=Supply(capacity=capacity, unit_cost=unit_cost), draw=float(generator.random()))


def shrink(mechanism: Mechanism, finding: Finding) -> Finding:
    """Return the same flaw in a smaller market: drop users, providers, cost and capacity and round numbers while it can still be found.

    Args:
        mechanism: that has the flaw.
        finding: to start from.
    """
    smaller = True
    while smaller:
        smaller = False
        for trial in _simpler(finding.trial):
            other = _find_again(mechanism, trial, finding.flaw)
            if other is not None:
                finding, smaller = other, True
                break
    return finding


def _simpler(trial: Trial) -> list[Trial]:
    """Return markets that are one step simpler."""
    bids, supply = trial.bids, trial.supply
    rows = np.arange(len(bids))
    simpler = [replace(trial, bids=_select(bids, np.delete(rows, row))) for row in rows]
    if bids.provider is not None:
        simpler.append(replace(trial, bids=replace(bids, provider=None)))
    if supply.unit_cost > 0:
        simpler.append(replace(trial, supply=replace(supply, unit_cost=0.0)))
    if np.isfinite(supply.capacity):
        simpler.append(replace(trial, supply=replace(supply, capacity=float("inf"))))
    draws = [round(trial.draw, digits) for digits in (1, 2, 3)]
    simpler += [replace(trial, draw=draw) for draw in draws if draw < 1 and len(repr(draw)) < len(repr(trial.draw))]
    for digits in (0, 1, 2):
        rounded = replace(bids, amount=bids.amount.round(digits), demand=bids.demand.round(digits))
        changes = np.any(rounded.amount != bids.amount) or np.any(rounded.demand != bids.demand)
        if changes and not np.any((rounded.demand == 0) & (bids.demand > 0)):
            simpler.append(replace(trial, bids=rounded))
    return simpler


def _select(bids: Bids, rows: np.ndarray) -> Bids:
    return Bids(
        ids=tuple(bids.ids[row] for row in rows),
        amount=bids.amount[rows],
        demand=bids.demand[rows],
        provider=None if bids.provider is None else bids.provider[rows],
    )


def _find_again(mechanism: Mechanism, trial: Trial, flaw: Flaw) -> Finding | None:
    if flaw is Flaw.PROFITABLE_DEVIATION:
        users = np.flatnonzero((trial.bids.demand > 0) & np.isfinite(trial.bids.demand)).tolist()
        return find_deviation(mechanism, trial, np.random.default_rng(0), users)[0]
    return next((found for found in find_flaws(mechanism, trial) if found.flaw is flaw), None)


def manipulable_share(mechanism: Mechanism, bids: Bids, supply: Supply, *, points: int = 400, seed: int = 0) -> float:
    """Return the share of draws, midpoints of equal parts, with which some user of a market could gain by another bid.

    Args:
        mechanism: any.
        bids: the amounts are the values.
        supply: what is sold.
        points: how many draws, at least 1.
        seed: of the random bids tried, at least 0.

    Raises:
        ValueError: when ``points`` is below 1.
    """
    generator = np.random.default_rng(seed)
    users = np.flatnonzero((bids.demand > 0) & np.isfinite(bids.demand)).tolist()
    trials = [Trial(bids=bids, supply=supply, draw=float(draw)) for draw in midpoints(points)]
    return sum(find_deviation(mechanism, trial, generator, users)[0] is not None for trial in trials) / points
