"""Forward: a plan carried out event by event, and checked against the scenario, without the planner's help.

Source: G. Qu, T. Li, Q. Chen, X. Chen, S. Zhou, arXiv 2512.20946 (start rule): downloads run without a break from time 0; layer l starts
when it has arrived and layer l - 1 is done. Nothing here is shared with the planner but the records, so that an error in one shows.

Departures: energy, fixed power per user and download before inference as in ``nmoe.deliver.allocate``.
"""

import heapq
import math
from collections import deque
from dataclasses import dataclass

from nmoe.deliver.allocate import METHODS, Allocation, Plan
from nmoe.deliver.scenario import ModelProfile, Receiver, Scenario

TOLERANCE = 1e-9  # relative


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """One user's delivery, per layer.

    Attributes:
        downloaded_s: when each layer had arrived.
        started_s, finished_s: when each ran.
        energy_j: what computing each took.
        receive_energy_j: what the download took.
    """

    downloaded_s: tuple[float, ...]
    started_s: tuple[float, ...]
    finished_s: tuple[float, ...]
    energy_j: tuple[float, ...]
    receive_energy_j: float

    @property
    def finish_s(self) -> float:
        """When the last layer was done."""
        return self.finished_s[-1]

    @property
    def total_energy_j(self) -> float:
        """What computing and receiving took."""
        return math.fsum(self.energy_j) + self.receive_energy_j


def simulate(scenario: Scenario, allocation: Allocation, *, whole: bool = False) -> Timeline:
    """Carry out what one user was given.

    Args:
        scenario: the models, users and bandwidth.
        allocation: of a user that is served.
        whole: inference waits for the whole model (download, then infer).

    Raises:
        ValueError: when the user is not served, unknown, or was given what it cannot use.
    """
    user = _find_user(scenario, allocation.id)
    model = _check_allocation(scenario, user, allocation)
    layers = len(model.layer_bytes)
    bits_per_s = _bits_per_s(scenario, user, allocation.bandwidth_share)
    events: list[tuple[float, int, str]] = []  # when, layer, what
    sent = 0.0
    for layer, size in enumerate(model.layer_bytes):
        sent += 8 * size
        heapq.heappush(events, (sent / bits_per_s, layer, "downloaded"))
    downloaded, started, finished = ([math.nan] * layers for _ in range(3))
    here: deque[int] = deque()  # arrived and not yet started, in order
    busy, num_downloaded = False, 0
    while events:
        now, layer, what = heapq.heappop(events)
        if what == "downloaded":
            downloaded[layer] = now
            num_downloaded += 1
            here.append(layer)
        else:
            finished[layer] = now
            busy = False
        if here and not busy and (num_downloaded == layers or not whole):
            following = here.popleft()
            started[following], busy = now, True
            heapq.heappush(events, (now + _busy_s(user, model, following, allocation), following, "finished"))
    energy = [_energy_j(user, model, layer, allocation) for layer in range(layers)]
    return Timeline(
        downloaded_s=tuple(downloaded),
        started_s=tuple(started),
        finished_s=tuple(finished),
        energy_j=tuple(energy),
        receive_energy_j=user.receive_power_w * downloaded[-1],
    )


def check_plan(scenario: Scenario, plan: Plan) -> None:
    """Check everything that a plan promises, to a relative 1e-9.

    Raises:
        ValueError: naming the user and the constraint that does not hold.
    """
    ids = [user.id for user in scenario.users]
    if [allocation.id for allocation in plan.allocations] != ids:
        raise ValueError(f"plan: one allocation per user wanted, in the order {ids}, got {[each.id for each in plan.allocations]}")
    used = math.fsum(allocation.bandwidth_share for allocation in plan.allocations)
    if not used <= 1 + TOLERANCE:
        raise ValueError(f"plan: bandwidth shares must not add up to more than 1, got {used:.12g}")
    whole = METHODS[plan.method].whole
    for allocation in plan.allocations:
        if allocation.served:
            _check_promises(_find_user(scenario, allocation.id), allocation, simulate(scenario, allocation, whole=whole))
        elif allocation.bandwidth_share != 0 or allocation.model is not None or not allocation.reason:
            raise ValueError(f"user {allocation.id!r}: not served, so no model, no bandwidth and a reason wanted, got {allocation}")


def _check_promises(user: Receiver, allocation: Allocation, timeline: Timeline) -> None:
    """Raise ValueError unless deadline and budget hold, and the plan's own figures are those of the simulation."""
    owner = f"user {user.id!r}"
    if not timeline.finish_s <= user.deadline_s * (1 + TOLERANCE):
        raise ValueError(f"{owner}: deadline_s {user.deadline_s:g} does not hold, inference ends after {timeline.finish_s:.12g} s")
    if not timeline.total_energy_j <= user.energy_j * (1 + TOLERANCE):
        raise ValueError(f"{owner}: energy_j {user.energy_j:g} does not hold, the plan takes {timeline.total_energy_j:.12g} J")
    if allocation.finish_s is None or allocation.energy_j is None or allocation.slack_s is None:
        raise ValueError(f"{owner}: served, so finish_s, energy_j and slack_s wanted, got {allocation}")
    promised = {
        "finish_s": (allocation.finish_s, timeline.finish_s),
        "energy_j": (allocation.energy_j, timeline.total_energy_j),
        "slack_s": (allocation.slack_s + timeline.finish_s, user.deadline_s),
    }
    for field, (said, is_so) in promised.items():
        if not math.isclose(said, is_so, rel_tol=TOLERANCE):
            raise ValueError(f"{owner}: {field} of the plan does not agree with its simulation, {said:.12g} against {is_so:.12g}")


def _find_user(scenario: Scenario, id: str) -> Receiver:  # noqa: A002
    for user in scenario.users:
        if user.id == id:
            return user
    raise ValueError(f"user {id!r}: not in the scenario")


def _check_allocation(scenario: Scenario, user: Receiver, allocation: Allocation) -> ModelProfile:
    """Return the model.

    Raises:
        ValueError: when user and allocation do not fit.
    """
    owner = f"user {user.id!r}"
    if not allocation.served or allocation.model is None:
        raise ValueError(f"{owner}: not served ({allocation.reason})")
    if allocation.model not in user.models:
        raise ValueError(f"{owner}: a model out of {', '.join(user.models)} wanted, got {allocation.model!r}")
    if not 0 < allocation.bandwidth_share <= 1 + TOLERANCE:
        raise ValueError(f"{owner}: bandwidth_share must be in (0, 1], got {allocation.bandwidth_share:g}")
    model = scenario.models[allocation.model]
    if len(allocation.clocks) != len(model.layer_bytes):
        raise ValueError(f"{owner}: {len(model.layer_bytes)} clocks wanted, one per layer of {model.name}, got {len(allocation.clocks)}")
    for layer, clock in enumerate(allocation.clocks):
        if not (0 < clock <= 1 + TOLERANCE and clock >= user.min_clock * (1 - TOLERANCE)):
            raise ValueError(f"{owner}: clocks[{layer}] must be in [{user.min_clock:g}, 1] and above 0, got {clock:g}")
    return model


def _bits_per_s(scenario: Scenario, user: Receiver, share: float) -> float:
    """Return the rate of the user's share: linear in it, or, at one power per user, with an SNR that is better in a smaller share."""
    if not user.fixed_power:
        return share * scenario.bandwidth_hz * user.spectral_efficiency
    snr_over_all = math.expm1(user.spectral_efficiency * math.log(2))  # exact for bad links too, whose SNR is lost beside 1
    return share * scenario.bandwidth_hz * math.log1p(snr_over_all / share) / math.log(2)


def _busy_s(user: Receiver, model: ModelProfile, layer: int, allocation: Allocation) -> float:
    """Return how long a layer runs, in s."""
    return user.layer_overhead_s + user.batch * model.layer_flops[layer] / (allocation.clocks[layer] * user.device_flops)


def _energy_j(user: Receiver, model: ModelProfile, layer: int, allocation: Allocation) -> float:
    """Return what computing a layer takes: dynamic power goes with the cube of the clock."""
    clock = allocation.clocks[layer]
    computing_s = user.batch * model.layer_flops[layer] / (clock * user.device_flops)
    return user.power_w * clock**3 * computing_s + user.static_power_w * _busy_s(user, model, layer, allocation)
