"""Replanner: users and what they were sent -> a scenario -> rates. Pure: time is an argument, and nothing here waits.

Every change counts ``version`` up; whoever drives it plans when the version has moved: ``request(now_s)``, its ``allocations()``, which may
be reckoned elsewhere, and ``apply``. In between others may come and go.

A user in the plan is paced at share * bandwidth * spectral efficiency. What the plan leaves over is split evenly among those who are sent
something without a share: users not served, users with more to fetch than was planned, and requests without a user.

Departures: all of it is ours. Users in mid-download are planned first, each for what remains, so that nobody loses a promised share to a
newcomer; the plan serves as many as possible among them, and then among the others. A user who takes less than 0.85 of what it is offered,
over a second of sending, is planned for with a spectral efficiency lower in proportion, as if its radio link had worsened; one that keeps
up again gets double, up to what it registered with. Without evidence the registered value returns after ``FORGET_S``, else a user without
a share could never show that it recovered.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from nmoe.deliver.allocate import Allocation
from nmoe.deliver.power import rate_of_share
from nmoe.deliver.scenario import ModelProfile, Receiver
from nmoe.deliver.server.pacing import WINDOW_S, RateWindow, Taken, TokenBucket
from nmoe.deliver.server.plan_request import PlanRequest, Waiting
from nmoe.deliver.server.task import DeliveryTask, PackedModel

BEHIND, KEPT_UP = 0.85, 0.95  # share of what was offered below and above which a user's rate counts as lower, or as recovered
LEAST_EFFICIENCY = 1e-3  # times the registered one
RECOVERY = 2.0  # factor per window
FORGET_S = 10.0
FRESH_S = 0.5  # plans are not older while somebody is in mid-download


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverySettings:
    """What is shared, and among how many.

    Attributes:
        bandwidth_hz: of all users together, above 0.
        spare_efficiency: spectral efficiency at which requests without a user are paced, in bit/s/Hz, above 0.
        margin: share of the time to the deadline that plans keep in hand for what they do not see (requests' round trips, buffers), [0, 1).
            In mid-download it is given up for those who cannot be served else.
        idle_s: users that show no sign of life for so long are dropped, above 0.
        max_users: registered at a time, at least 1.
    """

    bandwidth_hz: float
    spare_efficiency: float = 1.0
    margin: float = 0.05
    idle_s: float = 15.0
    max_users: int = 256

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: when one is out of range.
        """
        for name, value in (("bandwidth_hz", self.bandwidth_hz), ("spare_efficiency", self.spare_efficiency), ("idle_s", self.idle_s)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} must be above 0 and finite, got {value}")
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin must be in [0, 1), got {self.margin}")
        if self.max_users < 1:
            raise ValueError(f"max_users must be at least 1, got {self.max_users}")


@dataclass(slots=True, kw_only=True, eq=False)
class ServedUser:
    """One registered user.

    Attributes:
        task: what it wants, and what it has been sent.
        bucket: paces all its transfers.
        window: measures what it takes.
        seen_s: when it last showed a sign of life.
        transfers: under way.
        share: of the bandwidth, by the plan.
        allocation: of the last plan that saw it, times from its registration and clocks of all layers; None before.
        measured: spectral efficiency where it is lower than registered, in bit/s/Hz.
        measured_s: when that was.
    """

    task: DeliveryTask
    bucket: TokenBucket
    window: RateWindow
    seen_s: float
    transfers: int = 0
    share: float = 0.0
    allocation: Allocation | None = None
    measured: float | None = None
    measured_s: float = 0.0

    @property
    def efficiency(self) -> float:
        """Spectral efficiency that plans use, in bit/s/Hz."""
        return self.task.receiver.spectral_efficiency if self.measured is None else self.measured


@dataclass(slots=True, kw_only=True, eq=False)
class Replanner:
    """All users of a server.

    Attributes:
        settings: what is shared.
        anonymous: paces requests without a user.
        users: by id.
        version: counts changes that a plan depends on.
        planned: version that the plan in force has seen.
        planned_s: when that was asked for.
        total_bytes: of model files sent to anybody.
        closed: nothing more is sent.
    """

    settings: DeliverySettings
    anonymous: TokenBucket = field(default_factory=lambda: TokenBucket(0.0))
    anonymous_transfers: int = 0
    users: dict[str, ServedUser] = field(default_factory=dict)
    version: int = 0
    planned: int = 0
    planned_s: float = 0.0
    total_bytes: int = 0
    closed: bool = False

    def put(self, receiver: Receiver, models: dict[str, PackedModel], now_s: float) -> bool:
        """Register a user, or start a new task of one; what it was sent stays sent. False when there are too many users.

        Args:
            receiver: the user.
            models: those it names that can be planned for, at least one.
            now_s: the time, from which deadline and energy count.
        """
        known = self.users.get(receiver.id)
        if known is None and len(self.users) >= self.settings.max_users:
            return False
        if known is None:
            task = DeliveryTask(receiver, models, now_s)
            self.users[receiver.id] = ServedUser(task=task, bucket=TokenBucket(now_s), window=RateWindow(now_s, WINDOW_S), seen_s=now_s)
        else:
            same = {name: pieces for name, pieces in known.task.sent.items() if models.get(name) is known.task.models.get(name)}
            known.task = DeliveryTask(receiver, models, now_s, sent=same)
            known.allocation, known.seen_s, known.measured = None, now_s, None
        self.version += 1
        return True

    def remove(self, name: str, now_s: float) -> bool:
        """Forget a user. False when there is none of that name."""
        user = self.users.pop(name, None)
        if user is None:
            return False
        self.version += 1
        self._spread(now_s)
        return True

    def see(self, name: str, now_s: float) -> None:
        """Take note of a sign of life."""
        if name in self.users:
            self.users[name].seen_s = now_s

    def serves(self, user: ServedUser | None) -> bool:
        """Say whether transfers to a user, or for None to anybody else, may go on: whether it is still registered, and nothing closed."""
        if self.closed:
            return False
        return user is None or self.users.get(user.task.receiver.id) is user

    def begin(self, user: ServedUser | None, now_s: float) -> None:
        """Take note that a transfer begins, to a user or, for None, to somebody else."""
        if user is None:
            self.anonymous_transfers += 1
        else:
            self._run(user, now_s)
            user.transfers += 1
            user.seen_s = now_s
        self._spread(now_s)

    def end(self, user: ServedUser | None, now_s: float) -> None:
        """Take note that a transfer is over."""
        if user is None:
            self.anonymous_transfers -= 1
        else:
            self._run(user, now_s)
            user.transfers -= 1
        self._spread(now_s)

    def sent(self, user: ServedUser | None, model: str, start: int, stop: int, now_s: float) -> None:
        """Take note of bytes ``start`` to ``stop`` of a model's file that a socket took."""
        self.total_bytes += stop - start
        if user is None:
            return
        was_complete = user.task.complete
        user.seen_s = now_s
        user.window.took(stop - start)
        user.task.send(model, start, stop, now_s)
        if user.task.complete and not was_complete:
            self.version += 1  # its share is free

    def tick(self, now_s: float) -> None:
        """Measure what users take, forget old measurements, drop users that have gone silent and shares of tasks that are over.

        While somebody is in mid-download this is a change itself every ``FRESH_S``: what was sent is not quite what was planned.
        """
        if now_s - self.planned_s > FRESH_S and any(user.share and user.task.started for user in self.users.values()):
            self.version += 1
        for name, user in list(self.users.items()):
            self._run(user, now_s)
            if now_s - user.seen_s > self.settings.idle_s:
                self.remove(name, now_s)
            elif user.measured is not None and now_s - user.measured_s > FORGET_S:
                user.measured = None
                self.version += 1
            elif user.share > 0 and user.task.overtime(now_s):
                user.share = 0.0
                self.version += 1

    def request(self, now_s: float) -> PlanRequest:
        """Return what is to be planned now."""
        profiles: dict[str, ModelProfile] = {}
        names: dict[str, str] = {}
        waiting: dict[str, Waiting] = {}
        refused: dict[str, str] = {}
        begun: list[Receiver] = []
        fresh: list[Receiver] = []
        for user_id, user in self.users.items():
            if user.task.complete and user.allocation is not None:
                continue  # it computes, or is done; nothing more is sent to it
            rest = user.task.rest(now_s, spectral_efficiency=user.efficiency, margin=self.settings.margin)
            if isinstance(rest, str):
                refused[user_id] = rest
                continue
            keys = []
            for model, profile in rest.profiles.items():
                whole = profile is user.task.models[model].profile and profiles.get(model, profile) is profile
                key = model if whole else f"{model}/{user_id}"  # no name of a file has a slash
                profiles[key] = profile if whole else replace(profile, name=key)
                names[key] = model
                keys.append(key)
            promised = user.task.started and user.allocation is not None and user.allocation.served
            (begun if promised else fresh).append(replace(rest.receiver, models=tuple(keys)))
            waiting[user_id] = Waiting(user.task, rest.spent_j, rest.latest_s)
        return PlanRequest(
            version=self.version,
            bandwidth_hz=self.settings.bandwidth_hz,
            models=profiles,
            begun=tuple(begun),
            fresh=tuple(fresh),
            waiting=waiting,
            names=names,
            refused=refused,
            asked_s=now_s,
        )

    def apply(self, request: PlanRequest, allocations: tuple[Allocation, ...], now_s: float) -> None:
        """Pace by a plan from now on. Whoever has come or begun another task since ``request`` keeps what it has until the next plan.

        Args:
            request: what was planned.
            allocations: what it gave.
            now_s: the time.
        """
        for user_id, reason in request.refused.items():
            if user_id in self.users:
                self._stand_by(self.users[user_id], reason)
        for allocation in allocations:
            user, waiting = self.users.get(allocation.id), request.waiting[allocation.id]
            if user is None or user.task is not waiting.task:
                continue
            if not allocation.served or allocation.model is None or allocation.finish_s is None or allocation.energy_j is None:
                hand = f" (plans keep {self.settings.margin:.0%} of the time in hand)" if self.settings.margin else ""
                self._stand_by(user, f"{allocation.reason}{hand}")
                continue
            self._run(user, now_s)
            model = request.names[allocation.model]
            user.task.plan(model, allocation.clocks, now_s)
            user.share = 0.0 if user.task.complete else allocation.bandwidth_share
            finish_s = request.asked_s - user.task.began_s + allocation.finish_s
            user.allocation = replace(
                allocation,
                model=model,
                bandwidth_share=user.share,
                clocks=user.task.clocks,
                finish_s=finish_s,
                energy_j=waiting.spent_j + allocation.energy_j,
                slack_s=user.task.receiver.deadline_s - finish_s,
            )
        for user in self.users.values():
            if user.task.complete and user.allocation is not None and user.share:
                user.share = 0.0
                user.allocation = replace(user.allocation, bandwidth_share=0.0)
        self.planned, self.planned_s = max(self.planned, request.version), request.asked_s
        self._spread(now_s)

    def _stand_by(self, user: ServedUser, reason: str) -> None:
        """Take a user's share. What it was planned for before, if it was, it may still complete with what is left over."""
        user.share = 0.0
        user.allocation = Allocation(
            id=user.task.receiver.id,
            served=False,
            model=None,
            bandwidth_share=0.0,
            clocks=(),
            finish_s=None,
            energy_j=None,
            slack_s=None,
            reason=reason,
        )

    def _spread(self, now_s: float) -> None:
        """Set all rates: shares as planned, and what they leave over split evenly among those who are sent something without one."""
        spare = max(0.0, 1.0 - sum(user.share for user in self.users.values()))
        takers = sum(1 for user in self.users.values() if user.transfers and not user.share) + (self.anonymous_transfers > 0)
        part = spare / max(takers, 1)
        users = list(self.users.values())
        shares = [user.share or (part if user.transfers else 0.0) for user in users]
        paced = [position for position, share in enumerate(shares) if share > 0]
        rates = np.zeros(len(users))  # bytes/s
        rates[paced] = rate_of_share(
            np.array(shares)[paced],
            bandwidth_hz=self.settings.bandwidth_hz,
            spectral_efficiency=np.array([users[position].efficiency for position in paced]),
            fixed_power=np.array([users[position].task.receiver.fixed_power for position in paced], dtype=bool),
        )
        for user, rate in zip(users, rates.tolist(), strict=True):
            self._run(user, now_s)
            user.bucket.set_rate(rate, now_s)
        spare_bps = part * self.settings.bandwidth_hz * self.settings.spare_efficiency if self.anonymous_transfers else 0.0
        self.anonymous.set_rate(spare_bps / 8, now_s)

    def _run(self, user: ServedUser, now_s: float) -> None:
        taken = user.window.run(now_s, rate=user.bucket.rate, active=user.transfers > 0)
        if taken is not None:
            self._measure(user, taken, now_s)

    def _measure(self, user: ServedUser, taken: Taken, now_s: float) -> None:
        """Plan with a lower spectral efficiency for a user that falls behind, and with a higher one again when it keeps up."""
        told, ratio = user.task.receiver.spectral_efficiency, taken.taken / taken.offered
        if ratio < BEHIND:
            user.measured = max(user.efficiency * ratio, told * LEAST_EFFICIENCY)
        elif user.measured is not None and ratio > KEPT_UP:
            user.measured = None if user.measured * RECOVERY >= told else user.measured * RECOVERY
        elif user.measured is None:
            return
        user.measured_s = now_s
        self.version += 1
