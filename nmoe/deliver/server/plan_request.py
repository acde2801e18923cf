"""Plan request: what is to be planned at some moment, and its plan. Pure, so it may be carried out in another thread."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from nmoe.deliver.allocate import Allocation, plan
from nmoe.deliver.scenario import ModelProfile, Receiver, Scenario
from nmoe.deliver.server.task import DeliveryTask

LEAST_SHARE = 1e-9  # of the bandwidth, for those who get nothing: the planner then says what they lack


class Waiting(NamedTuple):
    """A task that is to be planned, as the user had it when the request was made; the energy it has spent, and all the time it has left."""

    task: DeliveryTask
    spent_j: float
    latest_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What is to be planned, and what it was made from.

    Attributes:
        version: of the state it shows.
        bandwidth_hz: of all.
        models: what is left of each model for each user.
        begun: users in mid-download.
        fresh: all others.
        waiting: the tasks behind them, by id.
        names: of the models behind the profiles.
        refused: users that cannot be planned for, and why.
        asked_s: when it was made.
    """

    version: int
    bandwidth_hz: float
    models: dict[str, ModelProfile]
    begun: tuple[Receiver, ...]
    fresh: tuple[Receiver, ...]
    waiting: dict[str, Waiting]
    names: dict[str, str]
    refused: dict[str, str]
    asked_s: float

    def allocations(self) -> tuple[Allocation, ...]:
        """Plan: first those in mid-download, where it must be without their margins, then the others with what is left."""
        if not self.begun and not self.fresh:
            return ()
        first = self._plan(self.begun)
        late = {allocation.id for allocation in first if not allocation.served}
        if late:
            first = self._plan(
                tuple(replace(one, deadline_s=self.waiting[one.id].latest_s) if one.id in late else one for one in self.begun)
            )
        left = max(1.0 - sum(allocation.bandwidth_share for allocation in first), LEAST_SHARE)
        narrowed = tuple(_narrowed(receiver, left) for receiver in self.fresh)
        others = plan(Scenario(bandwidth_hz=self.bandwidth_hz * left, models=self.models, users=narrowed)).allocations
        return (*first, *(replace(allocation, bandwidth_share=allocation.bandwidth_share * left) for allocation in others))

    def _plan(self, users: tuple[Receiver, ...]) -> tuple[Allocation, ...]:
        return plan(Scenario(bandwidth_hz=self.bandwidth_hz, models=self.models, users=users)).allocations


def _narrowed(receiver: Receiver, left: float) -> Receiver:
    """Return a user of a share of the band as one of a band of its own: fixed power is stronger per Hz there."""
    if not receiver.fixed_power:
        return receiver
    snr = math.expm1(receiver.spectral_efficiency * math.log(2))
    return replace(receiver, spectral_efficiency=math.log1p(snr / left) / math.log(2))
