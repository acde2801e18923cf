"""Quote: what a need would take of the edge, and what that cost the last time. It says nothing of bids that are still sealed."""

import math
from collections.abc import Mapping
from typing import Any

from nmoe.market.auction.needs import NONE
from nmoe.market.auction.workloads import Workload
from nmoe.market.service.record import demands_of
from nmoe.market.service.sealed_bid import NeedFields
from nmoe.market.service.summary import LastPrice


def quote_of(need: NeedFields, workloads: Mapping[str, Workload], *, unit_cost: float, last: LastPrice | None) -> dict[str, Any]:
    """Return the quote.

    Args:
        need: checked.
        workloads: that demand is computed from.
        unit_cost: of the open epoch; nobody is served below it.
        last: what was paid last; None where nobody has been served yet.

    Returns:
        ``place``: ``edge``, ``device`` where the device alone meets the need, ``nowhere`` where nothing does; ``demand`` in units, None in
        the last case; ``partition`` and ``exit``; ``least_payment``, the provider's cost; ``last_price``; ``last_payment``, what the demand
        would have cost at the highest price that was paid then.
    """
    found = demands_of([need], workloads)
    demand, partition, chosen = float(found.demand[0]), int(found.partition[0]), int(found.exit[0])
    wanted = math.isfinite(demand)
    return {
        "place": ("edge" if demand else "device") if wanted else "nowhere",
        "demand": demand if wanted else None,
        "partition": None if partition == NONE else partition,
        "exit": None if chosen == NONE else chosen,
        "unit_cost": unit_cost,
        "least_payment": unit_cost * demand if wanted else None,
        "last_price": last,
        "last_payment": last.highest_unit_price * demand if wanted and last is not None else None,
    }
