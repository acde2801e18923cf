"""Replanner: users come, go and slow down, in virtual time and without sockets; plans are the planner's own."""

import itertools

import pytest

from nmoe.deliver.scenario import ModelProfile, Receiver
from nmoe.deliver.server.ranges import Stretch
from nmoe.deliver.server.replanner import FORGET_S, DeliverySettings, Replanner
from nmoe.deliver.server.task import PackedModel

HEADER = 100


def packed(name, sizes, work=None):
    stops = list(itertools.accumulate(sizes, initial=HEADER))
    layers = [(Stretch(start, stop),) for start, stop in itertools.pairwise(stops)]
    layers[0] = (Stretch(0, HEADER), *layers[0])
    weights = (sizes[0] + HEADER, *sizes[1:])
    return PackedModel(
        profile=ModelProfile(name=name, layer_bytes=tuple(map(float, weights)), layer_flops=tuple(work or [1e9] * len(sizes))),
        layers=tuple(layers),
    )


MODELS = {"wide": packed("wide", [100_000] * 10), "thin": packed("thin", [50_000] * 4)}
SIZE = HEADER + 1_000_000


def receiver(name, **changes):
    told = {
        "spectral_efficiency": 4.0,
        "deadline_s": 10.0,
        "energy_j": 1e6,
        "batch": 1,
        "device_flops": 1e10,
        "power_w": 10.0,
        "layer_overhead_s": 0.0,
        "models": ("wide",),
    }
    return Receiver(id=name, **{**told, **changes})


class Lab:
    """A replanner and a clock that is moved by hand."""

    def __init__(self, bandwidth_hz=1e6, margin=0.0, **settings):
        self.now_s = 0.0
        self.replanner = Replanner(settings=DeliverySettings(bandwidth_hz=bandwidth_hz, margin=margin, **settings))

    def put(self, name, **changes):
        told = receiver(name, **changes)
        assert self.replanner.put(told, {model: MODELS[model] for model in told.models}, self.now_s)
        self.settle()
        return self.users[name]

    def remove(self, name):
        assert self.replanner.remove(name, self.now_s)
        self.settle()

    @property
    def users(self):
        return self.replanner.users

    def settle(self):
        if self.replanner.planned < self.replanner.version:
            request = self.replanner.request(self.now_s)
            self.replanner.apply(request, request.allocations(), self.now_s)
        assert sum(user.share for user in self.users.values()) <= 1 + 1e-9

    def begin(self, name, position=0):
        return Download(self, self.users[name] if name else None, position)

    def run(self, seconds, *downloads, step_s=0.01):
        """Let time pass; each download takes what its bucket gives, or what its link carries."""
        until_s = self.now_s + seconds
        while self.now_s < until_s - 1e-9:
            self.now_s += step_s
            for one in downloads:
                one.pull(step_s)
            self.replanner.tick(self.now_s)
            self.settle()


class Download:
    """One transfer over a link of ``link_bps``."""

    def __init__(self, lab, user, position):
        self.lab, self.user, self.position = lab, user, position
        self.link_bps = float("inf")
        self.done_s = None
        self._room = 0.0
        lab.replanner.begin(user, lab.now_s)

    def pull(self, step_s):
        bucket = self.user.bucket if self.user else self.lab.replanner.anonymous
        self._room = min(self._room, 10_000) + self.link_bps / 8 * step_s
        while self.position < SIZE and self._room >= 1:
            count = int(min(4096, SIZE - self.position, self._room))
            if bucket.wait_s(count, self.lab.now_s) > 0:
                return
            bucket.take(count, self.lab.now_s)
            self._room -= count
            self.lab.replanner.sent(self.user, "wide", self.position, self.position + count, self.lab.now_s)
            self.position += count
        if self.position == SIZE and self.done_s is None:
            self.done_s = self.lab.now_s
            self.lab.replanner.end(self.user, self.lab.now_s)


def test_a_user_alone_is_paced_as_planned_and_done_when_planned():
    lab = Lab()
    user = lab.put("a")
    given = user.allocation
    assert given.served
    assert given.model == "wide"
    assert user.bucket.rate == pytest.approx(given.bandwidth_share * 1e6 * 4.0 / 8)
    planned_s = 8 * SIZE / (given.bandwidth_share * 1e6 * 4.0)
    one = lab.begin("a")
    lab.run(planned_s + 0.1, one)
    assert one.done_s == pytest.approx(planned_s, abs=0.05)
    assert user.share == 0, "what it no longer needs is free"
    assert user.allocation.served
    assert user.allocation.finish_s == pytest.approx(given.finish_s)


def test_plans_in_mid_download_agree_with_the_first_when_nothing_else_happens():
    lab = Lab()
    user = lab.put("a", energy_j=3.0)  # so tight that clocks matter
    first, share = user.allocation, user.share
    one = lab.begin("a")
    for _ in range(8):
        lab.run(0.9, one)
        lab.replanner.version += 1
        lab.settle()
        assert user.allocation.served, user.allocation.reason
        assert user.share == pytest.approx(share, rel=0.02)
        assert user.allocation.finish_s == pytest.approx(first.finish_s, rel=0.01)
        assert user.allocation.energy_j == pytest.approx(first.energy_j, rel=0.02)
        assert user.allocation.clocks == pytest.approx(first.clocks, rel=0.05)
        assert len(user.allocation.clocks) == 10


def test_who_begins_late_catches_up_and_keeps_the_margin():
    lab = Lab(margin=0.1)
    user = lab.put("a")
    planned_s, share = user.allocation.finish_s, user.share
    assert planned_s == pytest.approx(9.0)
    lab.run(2.0)
    one = lab.begin("a")
    lab.run(7.0, one)
    assert one.done_s < planned_s
    lab.run(0.1)
    assert user.allocation.finish_s == pytest.approx(planned_s, abs=0.05)
    assert user.share == 0 < share


def test_the_margin_is_given_up_for_who_could_not_be_served_else():
    lab = Lab(bandwidth_hz=0.3e6, margin=0.1)
    user = lab.put("a")
    one = lab.begin("a")
    one.link_bps = user.bucket.rate * 8 * 0.93  # too little to notice
    lab.run(9.9, one)
    assert user.allocation.served
    assert one.done_s is not None
    assert 8.0 < one.done_s < 10.0


def test_who_comes_is_planned_for_and_who_goes_frees_its_share():
    lab = Lab(bandwidth_hz=0.5e6)
    lab.put("a")
    lab.put("b")
    late = lab.put("c")
    assert [user.allocation.served for user in lab.users.values()] == [True, True, False]
    assert late.allocation.reason
    lab.remove("a")
    assert late.allocation.served
    assert late.share > 0


def test_who_is_in_mid_download_is_not_dropped_for_who_needs_less():
    lab = Lab(bandwidth_hz=0.3e6)
    first = lab.put("a")
    one = lab.begin("a")
    lab.run(1.0, one)
    newcomer = lab.put("b", models=("thin",), deadline_s=30.0)
    assert newcomer.allocation.served
    assert first.allocation.served
    greedy = lab.put("c", deadline_s=15.0)
    assert first.allocation.served
    assert not greedy.allocation.served
    assert "bandwidth" in greedy.allocation.reason
    lab.run(9.0, one)
    assert one.done_s is not None
    assert one.done_s <= 10.0


@pytest.mark.parametrize("fixed_power", [False, True])
def test_what_newcomers_get_of_the_rest_is_what_they_would_need_of_the_whole(fixed_power):
    alone = Lab(bandwidth_hz=1e6).put("b", fixed_power=fixed_power)
    lab = Lab(bandwidth_hz=1e6)
    lab.put("a")
    lab.replanner.sent(lab.users["a"], "wide", 0, 1000, 0.0)
    newcomer = lab.put("b", fixed_power=fixed_power)
    assert lab.replanner.request(0.0).begun
    assert newcomer.share == pytest.approx(alone.share, rel=1e-9)
    assert newcomer.bucket.rate == pytest.approx(alone.bucket.rate, rel=1e-9)


def test_the_model_is_fixed_once_its_download_has_begun():
    lab = Lab(bandwidth_hz=0.5e6)
    user = lab.put("a", models=("wide", "thin"))
    assert user.allocation.model == "thin", "needs least"
    lab.replanner.sent(user, "thin", 0, 1000, 0.0)
    lab.put("b")
    assert user.allocation.model == "thin"
    request = lab.replanner.request(lab.now_s)
    (rest,) = request.begun
    assert rest.models == ("thin/a",)
    assert request.models["thin/a"].layer_bytes[0] == 50_000 + HEADER - 1000


def test_a_slow_link_lowers_the_efficiency_planned_with_and_recovery_raises_it():
    lab = Lab()
    user = lab.put("a", deadline_s=20.0)
    share, rate = user.share, user.bucket.rate
    one = lab.begin("a")
    one.link_bps = rate * 8 * 0.5
    lab.run(1.2, one)
    assert user.measured == pytest.approx(2.0, rel=0.1)
    assert user.share == pytest.approx(2 * share, rel=0.15), "what is missing takes twice the bandwidth"
    one.link_bps = float("inf")
    lab.run(2.5, one)
    assert user.measured is None
    assert user.share < 1.3 * share


def test_a_measurement_without_evidence_is_forgotten():
    lab = Lab(idle_s=60.0)
    user = lab.put("a", deadline_s=60.0)
    one = lab.begin("a")
    one.link_bps = user.bucket.rate * 8 * 0.2
    lab.run(1.2, one)
    assert user.measured is not None
    lab.replanner.end(user, lab.now_s)
    lab.run(FORGET_S + 0.1, step_s=0.1)
    assert user.measured is None


def test_silence_frees_a_share():
    lab = Lab(bandwidth_hz=0.5e6, idle_s=3.0)
    for name in "ab":
        lab.put(name, deadline_s=10.0)
    waiting = lab.put("c", deadline_s=20.0)
    assert [user.allocation.served for user in lab.users.values()].count(True) == 2
    alive = [name for name in lab.users if name != "a"]
    for _ in range(4):
        lab.run(1.0, step_s=0.1)
        for name in alive:
            lab.replanner.see(name, lab.now_s)
    assert "a" not in lab.users
    assert waiting.allocation.served
    assert waiting.share > 0


def test_the_deadline_ends_a_share_and_spares_the_others():
    lab = Lab()
    user = lab.put("a", deadline_s=5.0)
    lab.run(5.1, step_s=0.1)
    assert not user.allocation.served
    assert "deadline" in user.allocation.reason
    assert user.share == 0


def test_what_is_left_over_is_split_among_those_without_a_share():
    lab = Lab()
    user = lab.put("a")
    lab.put("b", deadline_s=1e-3)
    assert not lab.users["b"].allocation.served
    nobody = lab.begin(None)
    spare = 1 - user.share
    assert lab.replanner.anonymous.rate == pytest.approx(spare * 1e6 / 8)
    lab.begin("b")
    assert lab.replanner.anonymous.rate == pytest.approx(spare / 2 * 1e6 / 8)
    assert lab.users["b"].bucket.rate == pytest.approx(spare / 2 * 4e6 / 8)
    lab.replanner.end(nobody.user, lab.now_s)
    assert lab.replanner.anonymous.rate == 0
    assert lab.users["b"].bucket.rate == pytest.approx(spare * 4e6 / 8)


def test_a_new_task_keeps_what_was_sent():
    lab = Lab()
    user = lab.put("a")
    one = lab.begin("a")
    lab.run(30.0, one, step_s=0.05)
    assert one.done_s is not None
    lab.put("a")
    assert user.allocation.served
    assert user.share == 0, "the model is there"
    assert user.allocation.finish_s <= 10.0
    assert user.task.sent_bytes("wide") == SIZE


def test_a_plan_of_an_earlier_task_is_not_applied():
    lab = Lab()
    user = lab.put("a")
    request = lab.replanner.request(lab.now_s)
    stale = request.allocations()
    lab.replanner.put(receiver("a", models=("thin",)), {"thin": MODELS["thin"]}, lab.now_s)
    lab.replanner.apply(request, stale, lab.now_s)
    assert user.allocation is None
    assert lab.replanner.planned < lab.replanner.version
    lab.settle()
    assert user.allocation.model == "thin"


def test_users_are_bounded():
    lab = Lab(max_users=2)
    lab.put("a")
    lab.put("b")
    assert not lab.replanner.put(receiver("c"), {"wide": MODELS["wide"]}, 0.0)
    assert lab.replanner.put(receiver("b"), {"wide": MODELS["wide"]}, 0.0), "an update is no newcomer"


@pytest.mark.parametrize(
    "wrong",
    [{"bandwidth_hz": 0.0}, {"bandwidth_hz": float("nan")}, {"margin": 1.0}, {"idle_s": -1.0}, {"max_users": 0}, {"spare_efficiency": 0.0}],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DeliverySettings(**{"bandwidth_hz": 1e6, **wrong})
