"""Allocate: which users are served, with which model, which share of the bandwidth and which clocks.

Source: G. Qu, T. Li, Q. Chen, X. Chen, S. Zhou, "SLIDE: simultaneous model downloading and inference", arXiv 2512.20946: the problem P1. A
model's layers are downloaded in order from time 0; layer l starts when it is here and layer l - 1 is done. As many users as possible are to
be served by their deadlines, within their energy budgets and one bandwidth.

| symbol | here | unit |
|---|---|---|
| x_{k,i} | Allocation.model | |
| y_k | Allocation.bandwidth_share | 1 |
| z_{k,l} | Allocation.clocks | 1 |
| B | Scenario.bandwidth_hz | Hz |
| R_k | Receiver.spectral_efficiency | bit/s/Hz |
| S_l | ModelProfile.layer_bytes (8 S_l bit) | byte |
| W_l | ModelProfile.layer_flops | FLOP |
| b_k | Receiver.batch | 1 |
| f_k / kappa_k | Receiver.device_flops | FLOP/s |
| V_1 | Receiver.layer_overhead_s | s |
| T_k^max, E_k^max | Receiver.deadline_s, energy_j | s, J |

    t_l = max(sum_{l'<=l} 8 S_l' / (y B R), t_{l-1}) + V_1 + b W_l / (z_l f/kappa)

The least share of every user and model (``nmoe.deliver.bandwidth``), then models and users by a rule of ``nmoe.deliver.baselines``; those
of the method ``slide`` serve as many users as possible. All users and models are one batch.

Departures: everything beyond the recursion and the problem is ours: the energy, the lemmas, the proof of optimality, fixed power per user,
weights, and what is done with spare bandwidth.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator

from nmoe.deliver.bandwidth import finish_s, least_rates
from nmoe.deliver.baselines import (
    Admission,
    AnyModel,
    AscendingNeed,
    BySize,
    EqualShares,
    Heaviest,
    LeastNeed,
    Provision,
    RandomOrder,
)
from nmoe.deliver.candidates import Candidates, candidates
from nmoe.deliver.clocks import Clocks, FullClock, PerLayer, UniformClock, Vector
from nmoe.deliver.reasons import explain
from nmoe.deliver.scenario import Receiver, Scenario

Spare = Literal["keep", "share"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """What one user gets.

    Attributes:
        id: the user's.
        served: whether it gets anything.
        model: what it gets; None if not served.
        bandwidth_share: of the whole band; 0 if not served.
        clocks: of each layer of the model, as shares of the full clock; empty if not served.
        finish_s: when inference ends, counted from the start of the download; None if not served.
        energy_j: what that takes; None if not served.
        slack_s: from there to the deadline; None if not served.
        reason: why it is not served; empty if it is.
    """

    id: str
    served: bool
    model: str | None
    bandwidth_share: float
    clocks: tuple[float, ...]
    finish_s: float | None
    energy_j: float | None
    slack_s: float | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What all users get.

    Attributes:
        method: its name in ``METHODS``.
        allocations: in the order of the scenario's users.
    """

    method: str
    allocations: tuple[Allocation, ...]

    @property
    def served(self) -> int:
        """Number of users served."""
        return sum(allocation.served for allocation in self.allocations)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A way to plan.

    Attributes:
        about: what it is, in a line.
        clocks: how clocks are chosen.
        provision: which model a user gets.
        admission: who is served.
        whole: inference waits for the whole model (download, then infer).
    """

    about: str
    clocks: Clocks = field(default_factory=PerLayer)
    provision: Provision = field(default_factory=LeastNeed)
    admission: Admission = field(default_factory=AscendingNeed)
    whole: bool = False


METHODS = {
    "slide": Method(about="as many users as possible: optimal"),
    "slide-weighted": Method(
        about="the largest sum of weights: optimal, but a knapsack (NP-hard), so its time is no longer polynomial", admission=Heaviest()
    ),
    "slide-uniform-clock": Method(about="one clock for all layers of a model", clocks=UniformClock()),
    "slide-full-clock": Method(about="every layer at full clock", clocks=FullClock()),
    "slide-equal": Method(about="the same share for every user", admission=EqualShares()),
    "slide-random-model": Method(about="a model drawn for each user", provision=AnyModel()),
    "slide-largest": Method(about="the largest model that a user alone could have", provision=BySize(largest=True)),
    "slide-smallest": Method(about="the smallest model that a user alone could have", provision=BySize(largest=False)),
    "slide-random-order": Method(about="users in random order, each if what it needs is left", admission=RandomOrder()),
    "dai": Method(about="download, then infer: as many users as possible", whole=True),
    "dai-equal": Method(about="download, then infer: the same share for every user", admission=EqualShares(), whole=True),
}


def plan(scenario: Scenario, method: str = "slide", *, spare: Spare = "keep", generator: Generator | None = None) -> Plan:
    """Plan a delivery.

    Args:
        scenario: models, users, bandwidth.
        method: one of ``METHODS``.
        spare: what is done with bandwidth that is left over: kept, or shared out in proportion to the shares, which makes downloads end
            earlier; clocks stay as they are.
        generator: for methods that draw.

    Returns:
        The plan; ``nmoe.deliver.forward.check_plan`` checks it without the planner's help.

    Raises:
        ValueError: when the method is unknown, spare is neither, or a method that draws gets no generator.
    """
    way = _find_method(method)
    if spare not in ("keep", "share"):
        raise ValueError(f'spare must be "keep" or "share", got {spare!r}')
    if not scenario.users:
        return Plan(method=method, allocations=())
    every, need = _needs(scenario, way)
    slots = way.provision.provide(every.table(need, fill=np.inf), every.table(every.tasks.total_bytes, fill=0.0), generator=generator)
    chosen = every.find(slots)
    weights = np.array([user.weight for user in scenario.users], dtype=float)
    shares = way.admission.admit(need[chosen], weights, generator=generator)
    admitted = shares > 0
    served = _serve(scenario, every.take(chosen[admitted]), shares[admitted], way.clocks, spare)
    asked = chosen[~admitted] if way.provision.fixes else np.flatnonzero(~admitted[every.user])
    left = 1 / len(shares) if isinstance(way.admission, EqualShares) else max(1 - float(shares.sum()), 0.0)
    reasons = explain(scenario, every.take(asked), need[asked], clocks=way.clocks, left=left)
    return Plan(
        method=method,
        allocations=tuple(served.get(place) or _refuse(user, reasons[place]) for place, user in enumerate(scenario.users)),
    )


def least_shares(scenario: Scenario, method: str = "slide") -> Float[ndarray, "user slot"]:
    """Return the least share of the band with which each user can have each model of its list, by a method's clocks.

    Args:
        scenario: models, at least one user, bandwidth.
        method: one of ``METHODS``.

    Returns:
        Shares; infinite where none is enough, and beyond the end of a user's list.

    Raises:
        ValueError: when the method is unknown, or there is no user.
    """
    if not scenario.users:
        raise ValueError("at least one user wanted, got none")
    every, need = _needs(scenario, _find_method(method))
    return every.table(need, fill=np.inf)


def _find_method(method: str) -> Method:
    if method not in METHODS:
        raise ValueError(f"a method out of {', '.join(METHODS)} wanted, got {method!r}")
    return METHODS[method]


def _needs(scenario: Scenario, way: Method) -> tuple[Candidates, Vector]:
    """Return all pairs of users and models, and the share that each needs."""
    every = candidates(scenario, whole=way.whole)
    return every, every.share_of_rate(least_rates(every.tasks, way.clocks))


def _serve(scenario: Scenario, chosen: Candidates, shares: Vector, clocks: Clocks, spare: Spare) -> dict[int, Allocation]:
    """Return the allocations of those admitted, by their places in the scenario; their shares may be too much by what rounding adds."""
    tasks = chosen.tasks
    clock = clocks.choose(tasks, chosen.pace_of_share(shares))  # [layer, problem]
    if spare == "share" or shares.sum() > 1:
        shares = shares / shares.sum()
    pace = chosen.pace_of_share(shares)
    busy = tasks.fixed + tasks.work / clock
    finish = finish_s(tasks, pace, np.cumsum(busy[::-1], axis=0)[::-1])
    energy = (tasks.power * tasks.work * clock**2 + tasks.static_power * busy).sum(0) + tasks.receive_power * pace * tasks.total_bytes
    served = {}
    rows = zip(chosen.user, chosen.slot, shares.tolist(), clock.T.tolist(), finish.tolist(), energy.tolist(), strict=True)
    for place, slot, share, layers, finish_at, spent in rows:
        user = scenario.users[place]
        model = scenario.models[user.models[slot]]
        finish_at = min(finish_at, user.deadline_s)  # what is over is rounding
        served[int(place)] = Allocation(
            id=user.id,
            served=True,
            model=model.name,
            bandwidth_share=share,
            clocks=tuple(layers[: len(model.layer_bytes)]),
            finish_s=finish_at,
            energy_j=min(spent, user.energy_j),
            slack_s=user.deadline_s - finish_at,
            reason="",
        )
    return served


def _refuse(user: Receiver, reason: str) -> Allocation:
    return Allocation(
        id=user.id, served=False, model=None, bandwidth_share=0.0, clocks=(), finish_s=None, energy_j=None, slack_s=None, reason=reason
    )
