"""What a gate is told of links: the bridge from bits to SNR, unmeasured and hopeless links, and what a user may say of radio links."""

import math
import random
import threading
import time

import numpy as np
import pytest
import torch

from nmoe.channel.analog import Analog
from nmoe.channel.estimate import BANDWIDTH_HZ, Source
from nmoe.channel.fading import Awgn, Rayleigh
from nmoe.channel.quantise import distortion_snr
from nmoe.channel.radio import Radio
from nmoe.cli.serving import radio_links
from nmoe.core.errors import BadFile
from nmoe.core.units import HIGHEST_GATE_SNR_DB, LOWEST_GATE_SNR_DB, to_db
from nmoe.node import TensorFormat, events
from nmoe.node.link_quality import MEASURED_ROWS, LinkQuality, Rounding
from nmoe.node.messages import ExpertCard
from nmoe.node.protocol import Origin, Rules
from nmoe.node.radio import Air, RadioLinks
from nmoe.node.wireless import Wireless

FEATURES = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
INT4_DB = to_db(distortion_snr(torch.from_numpy(FEATURES), bits=4))


def card(name: str, *experts: str) -> ExpertCard:
    return ExpertCard(
        node=name, version="1", experts=experts, classes=(), class_list="", num_classes=10, in_dim=128, out_dim=10,
        formats=tuple(TensorFormat), max_rows=999, rows_per_s=0.0, gradients=False, draining=False,
    )  # fmt: skip


def quality(air: Air | None = None, wireless: Wireless | None = None) -> tuple[LinkQuality, Origin]:
    """A node "a" with neighbours b (its twin is d) and c, measured as fast; one expert nobody serves."""
    origin = Origin(Rules(name="a", experts=("a", "b", "c", "nobody"), own=0, k=2, in_dim=128, out_dim=10), random.Random(0))
    for name, expert in (("b", "b"), ("c", "c"), ("d", "b")):
        origin.step(events.PeerUp(name), 0.0)
        origin.step(events.CardArrived(name, card(name, expert), 0.001), 0.0)
    return LinkQuality(origin, threading.Lock(), air=air, wireless=wireless, bandwidth_hz=BANDWIDTH_HZ), origin


def told(given: LinkQuality, block: dict[str, float] | None = None, *, left_s: float = 1.0) -> list[float]:
    return given.told(FEATURES, block, k=None, deadline_s=time.monotonic() + left_s)


def test_rounding_is_what_the_channels_quantiser_measures():
    rounding = Rounding()
    assert rounding.snr_db(TensorFormat.INT4) == pytest.approx(to_db(4.0 * 49))
    rounding.measure(np.zeros((1, 128), dtype=np.float32))
    for start in range(0, 64, 7):
        rounding.measure(FEATURES[start : start + 7])
    for form, bits in ((TensorFormat.INT8, 8), (TensorFormat.INT4, 4)):
        assert rounding.snr_db(form) == pytest.approx(to_db(distortion_snr(torch.from_numpy(FEATURES), bits=bits)), abs=1e-3)
    assert rounding.snr_db(TensorFormat.FLOAT16) == math.inf
    before = rounding.snr_db(TensorFormat.INT4)
    for _ in range(MEASURED_ROWS // 64):
        rounding.measure(FEATURES)
    late = rounding.snr_db(TensorFormat.INT4)
    rounding.measure(np.eye(128, dtype=np.float32))
    assert rounding.snr_db(TensorFormat.INT4) == late == pytest.approx(before, abs=0.2)


def test_a_gate_is_told_the_format_that_each_link_bears():
    given, origin = quality()
    assert told(given) == [math.inf, HIGHEST_GATE_SNR_DB, HIGHEST_GATE_SNR_DB, pytest.approx(math.nan, nan_ok=True)]
    origin.links["b"].goodput_bytes_s = origin.links["c"].goodput_bytes_s = 15_000.0
    own, b, c, nobody = told(given)
    assert (own, b) == (math.inf, HIGHEST_GATE_SNR_DB), "d serves b's expert, and its link is as before"
    assert c == pytest.approx(INT4_DB, abs=1e-3)
    assert math.isnan(nobody)
    assert told(given, left_s=0.01)[2] == LOWEST_GATE_SNR_DB
    origin.links["c"].rtt_s = origin.links["c"].goodput_bytes_s = None
    assert math.isnan(told(given)[2])


def test_noise_of_the_radio_and_of_rounding_add():
    links = RadioLinks(radio=Radio(fading=Awgn(), transmission=Analog(), low_db=0.0, high_db=0.0))
    given, origin = quality(Air(links, node="a", started_s=0.0))
    block = {"b": 3.0, "c": INT4_DB, "d": -7.0}
    assert told(given, block)[:3] == [math.inf, 3.0, INT4_DB], "float32 adds nothing; of b's two servers the better one counts"
    origin.links["c"].goodput_bytes_s = 15_000.0
    assert told(given, block)[2] == pytest.approx(INT4_DB - to_db(2.0), abs=1e-3)
    assert math.isnan(told(given, {})[1])
    assert given.block() == {"b": 0.0, "c": 0.0, "d": 0.0}


def test_the_state_of_a_link_is_its_goodput_as_an_snr():
    given, origin = quality()
    link = origin.links["b"]
    assert given.state(link, 5.0).source is Source.NONE
    link.goodput_bytes_s, link.goodput_at_s = 2.5e6, 4.0
    state = given.state(link, 5.0)
    assert (state.snr_db, state.source, state.age_s) == (pytest.approx(0.0), Source.GOODPUT, 1.0)  # 20 Mbit/s in 20 MHz
    assert given.state(link, 40.0).snr_db is None


def test_a_wireless_report_is_read_and_its_absence_said(tmp_path):
    report = tmp_path / "wireless"
    with pytest.raises(BadFile, match="no wireless report: cannot read"):
        Wireless(report, bandwidth_hz=20e6)
    report.write_text("Inter-|\n face |\n")
    with pytest.raises(BadFile, match="no wireless interface"):
        Wireless(report, bandwidth_hz=20e6)
    report.write_text("Inter-|\n face |\n wlan0: 0000 54. -70. -95. 0\n wlan1: 0000 54. -90. -95. 0\n")
    wireless = Wireless(report, bandwidth_hz=20e6)
    assert wireless.state(10.0).snr_db == pytest.approx(25.0)
    report.unlink()
    assert wireless.state(20.0).age_s == 10.0
    assert wireless.state(50.0).snr_db is None


def test_a_gate_is_told_the_wireless_report_until_messages_have_measured_the_link(tmp_path):
    report = tmp_path / "wireless"
    report.write_text("Inter-|\n face |\n wlan0: 0000 54. -85. -95. 0\n")
    given, origin = quality(wireless=Wireless(report, bandwidth_hz=20e6))
    origin.links["c"].rtt_s = None
    assert told(given) == [math.inf, HIGHEST_GATE_SNR_DB, pytest.approx(10.0), pytest.approx(math.nan, nan_ok=True)]
    report.write_text("Inter-|\n face |\n wlan0: 0000 54. -15. -95. 0\n")
    clamping, origin = quality(wireless=Wireless(report, bandwidth_hz=20e6))
    state = clamping.state(origin.links["c"], time.monotonic())
    assert (state.snr_db, state.clamped) == (HIGHEST_GATE_SNR_DB, 1)


NOTHING = {"channel": None, "snr": None, "transmission": None, "seed": None, "trace": None}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"snr": "0:10"}, "--channel or --channel-trace wanted, got --snr 0:10 alone"),
        ({"seed": 3}, "got --channel-seed 3 alone"),
        ({"channel": "nakagami"}, "channel must be one of awgn, rayleigh, rician:K"),
        ({"channel": "awgn", "snr": "nan:3"}, "snr must be LOW:HIGH"),
        ({"channel": "awgn", "snr": "9:3"}, "lower one first"),
        ({"channel": "awgn", "seed": -1}, "seed must be at least 0"),
    ],
)
def test_what_is_said_wrongly_of_radio_links_is_refused(words, said):
    with pytest.raises(ValueError, match=said):
        radio_links(**(NOTHING | words))


def test_radio_links_from_words(tmp_path):
    assert radio_links(**NOTHING) is None
    links = radio_links(**(NOTHING | {"channel": "rayleigh", "snr": "-5:5", "seed": 4}))
    assert links == RadioLinks(radio=Radio(fading=Rayleigh(), transmission=Analog(), low_db=-5.0, high_db=5.0), seed=4)
    file = tmp_path / "links.csv"
    file.write_text("time_s,snr_db,link\n0,5,x\n1,6,y\n")
    traced = radio_links(**(NOTHING | {"trace": file}))
    assert traced is not None
    assert sorted(traced.traces) == ["x", "y"]
    with pytest.raises(ValueError, match="either --snr or --channel-trace"):
        radio_links(**(NOTHING | {"trace": file, "snr": "0:1"}))
    with pytest.raises(BadFile):
        radio_links(**(NOTHING | {"trace": tmp_path / "none.csv"}))
