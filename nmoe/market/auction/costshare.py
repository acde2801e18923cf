"""Cost sharing: the lowest single price that extracts a given revenue.

Source: CostShare and ProfitExtract of A. V. Goldberg, J. D. Hartline, "Competitiveness via consensus" (SODA 2003); a Moulin mechanism. The
weighted form is derived for this project.

| symbol | here | unit |
|---|---|---|
| R | target | net price |
| w_(m) | value | net price per unit, the m-th largest |
| D_m | total | units demanded by the m largest |

CostShare_R serves the largest m with w_(m) >= R / D_m, at R / D_m per unit: it extracts R when R <= F and nothing otherwise. For a fixed R
and known demands no group of users can gain by misreporting, for a user's share of R falls as others join.

With the suffix maxima of w_(m) D_m, which do not increase, a query is a binary search: O(log n) after O(n).

Departures: none known.
"""

from dataclasses import dataclass, field
from typing import final

import numpy as np
from jaxtyping import Float
from numpy import ndarray

Values = Float[ndarray, " member"]

SLACK = 1 - 1e-12  # a revenue that is there but for rounding is there; or the order of a sum would decide who is served


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CostShare:
    """Cost sharing among some users.

    Attributes:
        value: net unit bids, at least 0, not increasing.
        total: units demanded by each user and those before it.
    """

    value: Values
    total: Values
    _suffix: Values = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Find the most that prices at or below each user's bid earn."""
        object.__setattr__(self, "_suffix", np.maximum.accumulate((self.value * self.total)[::-1]))

    def winners(self, target: float) -> int:
        """Return how many are served so that they pay ``target`` in all; 0 when no price extracts it.

        Args:
            target: R, at least 0.
        """
        return len(self.value) - int(np.searchsorted(self._suffix, target * SLACK))

    def price(self, target: float) -> float:
        """Return the price per unit that extracts ``target``; infinite when none does.

        Args:
            target: R, at least 0.
        """
        served = self.winners(target)
        if served == 0:
            return float("inf")
        return float(min(target / self.total[served - 1], self.value[served - 1]))  # the two differ by rounding at most
