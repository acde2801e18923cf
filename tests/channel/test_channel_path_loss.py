"""Path loss: values worked by hand, Sionna's TR 38.901 on a grid, laws, ranges."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nmoe.channel.base import PathLoss
from nmoe.channel.path_loss import FreeSpace, UrbanMacro, UrbanMicro, line_of_sight_probability

CARRIERS_HZ = [0.7e9, 3.5e9, 28e9]


def micro(*, carrier_hz: float = 3.5e9, line_of_sight: bool = True, **fields: float) -> UrbanMicro:
    return UrbanMicro(carrier_hz=carrier_hz, line_of_sight=line_of_sight, **fields)


LAWS = [FreeSpace(carrier_hz=2.4e9), micro(), micro(line_of_sight=False), UrbanMacro()]


def test_free_space_by_hand():
    """The textbook form in km and MHz, 32.45 + 20 log10 f + 20 log10 d, has c = 299792458 m/s; 3e8 is 0.006 dB less."""
    loss_db = FreeSpace(carrier_hz=2.4e9).loss_db(torch.tensor([1.0, 1000.0]))
    assert loss_db.tolist() == pytest.approx([40.05, 32.45 + 20 * math.log10(2400)], abs=0.01)


def test_micro_with_line_of_sight_by_hand():
    """At 3 GHz and 10 m and 1.5 m: d'_BP = 4 * 9 * 0.5 * 3e9 / 3e8 = 180 m."""
    law = micro(carrier_hz=3e9)
    assert law.breakpoint_m == pytest.approx(180)
    near = 32.4 + 21 * math.log10(math.sqrt(100**2 + 8.5**2)) + 20 * math.log10(3)
    far = 32.4 + 40 * math.log10(math.sqrt(500**2 + 8.5**2)) + 20 * math.log10(3) - 9.5 * math.log10(180**2 + 8.5**2)
    assert law.loss_db(torch.tensor([100.0, 500.0])).tolist() == pytest.approx([near, far], abs=1e-4)
    assert near == pytest.approx(83.975, abs=1e-3)
    assert far == pytest.approx(107.044, abs=1e-3)


def test_micro_without_line_of_sight_by_hand():
    """At 100 m, 3 GHz: 35.3 * 2.00157 + 22.4 + 21.3 * 0.47712 = 103.218 dB; a user 3 m higher loses 0.9 dB less, distance aside."""
    assert float(micro(carrier_hz=3e9, line_of_sight=False).loss_db(torch.tensor(100.0))) == pytest.approx(103.218, abs=1e-3)
    higher = micro(carrier_hz=3e9, line_of_sight=False, user_height_m=4.5, base_height_m=13.0)
    assert float(higher.loss_db(torch.tensor(100.0))) == pytest.approx(103.218 - 0.9, abs=1e-3)


def test_macro_by_hand():
    assert UrbanMacro().loss_db(torch.tensor([1000.0, 100.0])).tolist() == pytest.approx([128.1, 90.5], abs=1e-4)


def test_probability_of_a_line_of_sight_by_hand():
    wanted = [1.0, 1.0, 0.5 + 0.5 * math.exp(-1), 0.18 + 0.82 * math.exp(-100 / 36)]
    assert line_of_sight_probability(torch.tensor([0.0, 18.0, 36.0, 100.0])).tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("carrier_hz", CARRIERS_HZ)
def test_micro_equals_sionna(carrier_hz):
    """Sionna takes c = 299792458 m/s, so its breakpoint lies 0.07 % nearer, which is 0.006 dB beyond it."""
    tr38901 = pytest.importorskip("sionna.phy.channel.tr38901", reason="sionna-no-rt is not installed")
    antenna = tr38901.PanelArray(
        num_rows_per_panel=1,
        num_cols_per_panel=1,
        polarization="single",
        polarization_type="V",
        antenna_pattern="omni",
        carrier_frequency=carrier_hz,
    )
    channel = tr38901.UMi(
        carrier_frequency=carrier_hz,
        o2i_model="low",
        ut_array=antenna,
        bs_array=antenna,
        direction="uplink",
        enable_pathloss=True,
        enable_shadow_fading=False,
    )
    distance_m = torch.logspace(1, math.log10(4999), 200)
    users = torch.stack([distance_m, torch.zeros(200), torch.full((200,), 1.5)], dim=1)[None]
    still = torch.zeros(1, 200, 3)
    base, outdoors = torch.tensor([[[0.0, 0.0, 10.0]]]), torch.zeros(1, 200, dtype=torch.bool)
    for line_of_sight in (True, False):
        channel.set_topology(users, base, still, torch.zeros(1, 1, 3), still, outdoors, los=line_of_sight)
        ours = micro(carrier_hz=carrier_hz, line_of_sight=line_of_sight).loss_db(distance_m)
        torch.testing.assert_close(ours, channel._scenario.basic_pathloss.flatten(), atol=0.01, rtol=0)
    torch.testing.assert_close(line_of_sight_probability(distance_m), channel._scenario.los_probability.flatten(), atol=1e-6, rtol=0)


@given(st.floats(35, 5000), st.floats(35, 5000))
def test_farther_is_never_louder(one_m, other_m):
    near_m, far_m = sorted((one_m, other_m))
    for law in LAWS:
        near, far = law.loss_db(torch.tensor([near_m, far_m], dtype=torch.float64)).tolist()
        assert near <= far + 1e-9


@given(st.floats(10, 5000), st.floats(0.5e9, 100e9))
def test_a_hidden_link_is_never_better_than_one_in_sight(distance_m, carrier_hz):
    distance = torch.tensor(distance_m, dtype=torch.float64)
    in_sight, hidden = (micro(carrier_hz=carrier_hz, line_of_sight=sight).loss_db(distance) for sight in (True, False))
    assert hidden >= in_sight


def test_in_sight_the_law_has_no_jump_at_the_breakpoint():
    """The table's two branches meet within 0.01 dB where the antennas' difference in height is small against the distance."""
    edge_m = micro().breakpoint_m
    below, above = micro().loss_db(torch.tensor([edge_m, edge_m * (1 + 1e-9)], dtype=torch.float64)).tolist()
    assert above == pytest.approx(below, abs=0.01)


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("distance_m", [0.0, -1.0, math.nan, math.inf])
def test_impossible_distances_are_refused(law, distance_m):
    with pytest.raises(ValueError, match="distances"):
        law.loss_db(torch.tensor([100.0, distance_m]))


@pytest.mark.parametrize(("law", "distance_m"), [(micro(), 9.9), (micro(), 5001.0), (UrbanMacro(), 34.0), (UrbanMacro(), 20001.0)])
def test_distances_outside_the_standard_are_refused(law, distance_m):
    with pytest.raises(ValueError, match=f"got {distance_m:g} m and 1 more"):
        law.loss_db(torch.tensor([distance_m, 100.0, distance_m]))


@pytest.mark.parametrize(
    ("distances_m", "named"), [([10.0, 5.0], "5 m$"), ([5000.0, 6000.0], "6000 m$"), ([10.0, 5000.0, math.nan], "nan m$")]
)
def test_the_distance_that_is_outside_is_named_and_not_one_on_the_edge(distances_m, named):
    with pytest.raises(ValueError, match=f"distances of 10 to 5000 m wanted, got {named}"):
        micro().loss_db(torch.tensor(distances_m))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: FreeSpace(carrier_hz=0.0), "above 0 Hz wanted, got 0.0"),
        (lambda: FreeSpace(carrier_hz=math.nan), "above 0 Hz wanted, got nan"),
        (lambda: micro(carrier_hz=0.4e9), "0.5e9 to 100e9 Hz wanted, got 4e"),
        (lambda: micro(user_height_m=1.0), "1.5 to 22.5 m wanted, got 1.0"),
        (lambda: micro(base_height_m=0.5), "above 1 m wanted, got 0.5"),
        (lambda: line_of_sight_probability(torch.tensor(-1.0)), "got -1 m"),
    ],
)
def test_bad_fields_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_every_class_of_the_family_is_tested_here():
    ours = {kind.__name__ for kind in PathLoss.__subclasses__() if kind.__module__.startswith("nmoe.")}
    assert ours == {type(one).__name__ for one in LAWS}
