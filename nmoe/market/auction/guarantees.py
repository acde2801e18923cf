"""Guarantees: what is proved about AERIA's revenue and truthfulness, and the base that makes the most of it.

Source: the proofs are ours, of standard machinery (A. V. Goldberg, J. D. Hartline, "Competitiveness via consensus", SODA 2003, whose
3.39-competitive auction is reconstructed); the AERIA paper (arXiv 2503.04521) has been read in its abstract only, which gives no number.

| symbol | here | unit |
|---|---|---|
| c | base | 1, above 1 |
| alpha | share | largest share of one winner in what F2's price sells, in (0, 1) |
| rho | shrink | 1, at least 1 |

Departures: every number is derived for this project.
"""

import math

from scipy.optimize import brentq

from nmoe.market.auction.consensus import check_base

VICKREY_PROBABILITY = 1 / (1 + math.log(2))  # of the mixture, with base 2
MIXTURE_RATIO = 2 * (1 + math.log(2))  # F2 over the mixture's expected profit, at most: 3.386


def consensus_probability(base: float, shrink: float) -> float:
    """Return the probability that all values in [V / shrink, V] have one consensus estimate: 1 - log_c(shrink).

    Raises:
        ValueError: when ``base`` is not above 1 or ``shrink`` is below 1.
    """
    check_base(base)
    if not shrink >= 1:
        raise ValueError(f"shrink must be at least 1, got {shrink}")
    return max(0.0, 1 - math.log(shrink) / math.log(base))


def consensus_value(base: float, shrink: float) -> float:
    """Return E[r(V), all values in [V / shrink, V] agree on it] / V; arguments and errors as for ``consensus_probability``."""
    return max(0.0, 1 / shrink - 1 / base) / math.log(base) if consensus_probability(base, shrink) > 0 else 0.0


def envy_free_revenue(base: float) -> float:
    """Return the part of F that AERIA-EF expects of truthful bids: (1 - 1/c) / ln c.

    Raises:
        ValueError: when ``base`` is not above 1.
    """
    check_base(base)
    return (1 - 1 / base) / math.log(base)


def truthful_revenue(base: float, share: float) -> float:
    """Return the part of F2 that AERIA-IC expects at least when F2 has three winners or more: max(0, 1 - alpha - 1/c) / ln c.

    Raises:
        ValueError: when ``base`` is not above 1 or ``share`` is not in (0, 1).
    """
    check_base(base)
    _check_share(share)
    return max(0.0, 1 - share - 1 / base) / math.log(base)


def competitive_ratio(base: float, share: float) -> float:
    """Return F2 over what AERIA-IC expects, at most; infinite when there is no bound. As for ``truthful_revenue``."""
    part = truthful_revenue(base, share)
    return 1 / part if part else math.inf


def manipulability_bound(base: float, share: float) -> float:
    """Return the probability of a draw with which somebody could gain by misreporting to AERIA-EF, at most: log_c(1 / (1 - alpha)).

    It bounds the probability that AERIA-IC's users see more than one price, too.

    Args:
        base: c, above 1.
        share: alpha among the winners of the benchmark that is used, in (0, 1).

    Raises:
        ValueError: when one is out of range.
    """
    _check_share(share)
    return 1 - consensus_probability(base, 1 / (1 - share))


def mixture_revenue(winners: int) -> float:
    """Return the part of F2 that the mixture expects at least, for users of one unit each and no limit of capacity.

    Args:
        winners: of F2, at least 2.

    Returns:
        p / m* + (1 - p) (1/2 - 1/m*) / ln 2, which is p / 2 for every m*.

    Raises:
        ValueError: when there are fewer than two winners.
    """
    if winners < 2:
        raise ValueError(f"F2 has at least 2 winners, got {winners}")
    p = VICKREY_PROBABILITY
    return p / winners + (1 - p) * (1 / 2 - 1 / winners) / math.log(2)


def best_base(share: float) -> float:
    """Return the base with the best guarantee for AERIA-IC, which is then its competitive ratio.

    It is the root c > 1 of ln c = (1 - alpha) c - 1.

    Args:
        share: alpha known beforehand, in (0, 1), such as one over the fewest winners expected. It must not be computed from the bids.

    Raises:
        ValueError: when it is not in (0, 1).
    """
    _check_share(share)
    kept = 1 - share
    return float(brentq(lambda c: math.log(c) - kept * c + 1, 1 / kept, 4 / kept**2, xtol=1e-14, rtol=1e-14))


def base_for_winners(winners: int) -> float:
    """Return the best base for a market of users of one unit each of whom at least so many win.

    Args:
        winners: known beforehand, at least 3.

    Raises:
        ValueError: when there are fewer than three, for which AERIA-IC has no guarantee.
    """
    if winners < 3:
        raise ValueError(f"AERIA-IC has a guarantee for at least 3 winners, got {winners}; use the mixture")
    return best_base(1 / winners)


def _check_share(share: float) -> None:
    if not 0 < share < 1:
        raise ValueError(f"share must be in (0, 1), got {share}")
