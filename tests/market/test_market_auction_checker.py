"""The checker finds what is wrong with mechanisms that are broken on purpose, and shows it in a small market."""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pytest

from nmoe.market.auction import FAMILIES, AeriaEF, AeriaIC, Bids, Mechanism, Omniscient, OptimalPrice, Outcome, Supply, check_mechanism
from nmoe.market.auction.base import Reason
from nmoe.market.auction.checker import manipulable_share
from nmoe.market.auction.flaws import Flaw, Trial, deviations, find_flaws


def outcome_of(bids, supply, draw, served, unit_price):
    served = served & (bids.demand > 0) & np.isfinite(bids.demand)
    return Outcome(
        mechanism="broken",
        draw=draw,
        reason=np.where(served, Reason.SERVED, Reason.OUTBID),
        unit_price=unit_price,
        payment=np.where(served, unit_price * np.where(np.isfinite(bids.demand), bids.demand, 0), 0),
        demand=bids.demand,
        unit_cost=supply.unit_cost,
        estimates={},
    )


def unit_bids(bids):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((bids.demand > 0) & np.isfinite(bids.demand), bids.amount / bids.demand, 0.0)


@dataclass(frozen=True, slots=True)
class Broken(Mechanism):
    """Claims everything."""

    name: ClassVar[str] = "broken"
    truthful: ClassVar[bool] = True
    envy_free: ClassVar[bool] = True


class FirstPrice(Broken):
    """The first is served and pays its bid."""

    def clear(self, bids, supply, *, draw):
        unit = unit_bids(bids)
        fits = (bids.demand <= supply.capacity) & (unit >= supply.unit_cost)
        best = np.where(fits, unit, -1)
        served = np.zeros(len(bids), dtype=bool)
        if fits.any():
            served[best.argmax()] = True
        return outcome_of(bids, supply, draw, served, unit)


class Everybody(Broken):
    """Serves everybody for nothing, whatever there is and whatever it costs."""

    def clear(self, bids, supply, *, draw):
        return outcome_of(bids, supply, draw, np.ones(len(bids), dtype=bool), np.zeros(len(bids)))


class Robber(Broken):
    """Takes one unit price from whoever fits, whatever it bid."""

    def clear(self, bids, supply, *, draw):
        fits = bids.demand <= supply.capacity / max(1, len(bids))
        return outcome_of(bids, supply, draw, fits, np.full(len(bids), 3.0 + supply.unit_cost))


@dataclass(frozen=True, slots=True)
class Moody(Broken):
    """Draws its own chance."""

    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def clear(self, bids, supply, *, draw):
        return AeriaIC().clear(bids, supply, draw=self.generator.random())


class PaysToLose(Broken):
    """Losers pay a fee."""

    def clear(self, bids, supply, *, draw):
        outcome = AeriaIC().clear(bids, supply, draw=draw)
        return replace(outcome, payment=outcome.payment + ~outcome.served * 0.01)


class TwoPrices(Broken):
    """Asks every second user for more."""

    def clear(self, bids, supply, *, draw):
        price = supply.unit_cost + np.where(np.arange(len(bids)) % 2, 0.5, 0.1)
        unit = unit_bids(bids)
        served = (unit >= price) & (bids.demand <= supply.capacity / max(1, len(bids)))
        return outcome_of(bids, supply, draw, served, price)


@pytest.mark.parametrize(
    ("mechanism", "flaws"),
    [
        (FirstPrice(), {Flaw.PROFITABLE_DEVIATION}),
        (Everybody(), {Flaw.OVER_CAPACITY, Flaw.DEFICIT}),
        (Robber(), {Flaw.NEGATIVE_UTILITY}),
        (Moody(), {Flaw.CHANGING}),
        (PaysToLose(), {Flaw.MALFORMED}),
        (TwoPrices(), {Flaw.ENVY}),
    ],
)
def test_it_finds_the_flaw_and_shows_it_in_a_market_of_at_most_three(mechanism, flaws):
    report = check_mechanism(mechanism, tries=1500)
    assert not report.passed
    assert flaws <= {flaw for flaw, count in report.found.items() if count}
    page = str(report)
    assert page.startswith("broken: FLAWED")
    for flaw in flaws:
        assert len(report.examples[flaw].trial.bids) <= 3
        assert f"Counter-example: {flaw}" in page


@pytest.mark.parametrize("mechanism", [Omniscient()])
def test_what_is_not_claimed_is_counted_and_no_fault(mechanism):
    report = check_mechanism(mechanism, tries=3000)
    assert report.passed
    assert report.found[Flaw.PROFITABLE_DEVIATION] > 0
    assert "Example (not claimed): a user gains" in str(report)


def test_neither_variant_has_both():
    """No auction with a guarantee can be always truthful and always free of envy: each variant lacks the other's."""
    truthful, envy_free = (check_mechanism(mechanism, tries=1000) for mechanism in (AeriaIC(), AeriaEF()))
    assert (truthful.found[Flaw.PROFITABLE_DEVIATION], envy_free.found[Flaw.ENVY]) == (0, 0)
    assert truthful.found[Flaw.ENVY] > 0
    assert envy_free.found[Flaw.PROFITABLE_DEVIATION] > 0


def test_a_counter_example_can_be_run_again():
    report = check_mechanism(OptimalPrice(), tries=3000)
    example = report.examples[Flaw.ENVY]
    again = [finding.detail for finding in find_flaws(OptimalPrice(), example.trial) if finding.flaw is Flaw.ENVY]
    assert again == [example.detail]
    assert report.found[Flaw.PROFITABLE_DEVIATION] == 0


def test_the_same_arguments_find_the_same():
    one, other = (str(check_mechanism(Omniscient(), tries=300, seed=3)) for _ in range(2))
    assert one == other


def test_it_draws_from_the_families_in_turn():
    asked = Counter()

    def counted(name):
        def family(users, generator):
            asked[name] += 1
            return FAMILIES[name](users, generator)

        return family

    check_mechanism(AeriaIC(), families={name: counted(name) for name in FAMILIES}, tries=800)
    assert set(asked) == set(FAMILIES)


def test_deviations_are_the_specifications():
    bids = Bids(ids=("a", "b", "c"), amount=np.array([6.0, 4.0, 1.0]), demand=np.array([2.0, 1.0, 0.0]))
    tried = deviations(Trial(bids=bids, supply=Supply(unit_cost=0.5), draw=0.1), 0, np.random.default_rng(0)).tolist()
    wanted = [8.0, 0.0, 6 * 0.999, 6 * 1.001, 80000.0, 1.0]
    assert set(wanted) <= set(tried)
    assert len(tried) == 3 + 7 + 10


def test_the_share_of_draws_with_a_profitable_deviation():
    bids = Bids(ids=("a", "b", "c"), amount=np.array([6.0, 4.0, 1.0]), demand=np.ones(3))
    assert manipulable_share(AeriaIC(), bids, Supply(), points=5) == 0
    assert manipulable_share(Omniscient(), bids, Supply(), points=5) == 1


@pytest.mark.parametrize("wrong", [{"tries": 0}, {"families": {}}])
def test_nothing_to_try_is_refused(wrong):
    with pytest.raises(ValueError, match="tries must be at least 1 and families at least one"):
        check_mechanism(AeriaIC(), **wrong)
