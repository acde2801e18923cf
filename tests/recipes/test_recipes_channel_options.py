"""Channel options: words become one radio; every wrong one is a line that says what was wanted and what came."""

import dataclasses
import json
import math
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from nmoe import cli
from nmoe.channel.analog import Analog
from nmoe.channel.coding import Convolutional, Ldpc, Repetition
from nmoe.channel.digital import Digital
from nmoe.channel.fading import Awgn, Rayleigh, Rician
from nmoe.channel.modulation import Bpsk, Qam16, Qpsk
from nmoe.channel.radio import Radio
from nmoe.core.errors import EngineError
from nmoe.recipes.channel_options import parse_fading, parse_snr, parse_transmission
from nmoe.recipes.options import TrainOptions, read_options
from nmoe.recipes.program import BUNDLES, GATES, NAIVE_GATES, program_of
from nmoe.recipes.serve import channel_words


def test_words_become_a_radio() -> None:
    assert TrainOptions().radio() is None
    assert TrainOptions(channel="rayleigh").radio() == Radio(fading=Rayleigh(), transmission=Analog(), low_db=-10.0, high_db=20.0)
    told = TrainOptions(channel="rician:2.5", snr="-3.5:-1", transmission="digital:4").radio()
    assert told == Radio(fading=Rician(k_factor=2.5), transmission=Digital(bits=4, modulation=Qpsk()), low_db=-3.5, high_db=-1.0)
    assert parse_fading("awgn") == Awgn()
    assert parse_transmission("digital") == Digital(bits=8, modulation=Qpsk())


def test_a_transmission_may_name_its_modulation_and_its_code() -> None:
    assert parse_transmission("digital:6:bpsk") == Digital(bits=6, modulation=Bpsk())
    assert parse_transmission("digital:8:16qam:none") == Digital(bits=8, modulation=Qam16())
    assert parse_transmission("digital:8:qpsk:repetition") == Digital(bits=8, modulation=Qpsk(), code=Repetition())
    assert parse_transmission("digital") == parse_transmission("digital:8:qpsk:none")


@pytest.mark.skipif(find_spec("sionna") is None, reason="the extra radio is not installed")
def test_codes_of_the_extra_radio_are_read() -> None:
    assert parse_transmission("digital:8:qpsk:convolutional") == Digital(bits=8, modulation=Qpsk(), code=Convolutional())
    assert parse_transmission("digital:8:bpsk:ldpc") == Digital(bits=8, modulation=Bpsk(), code=Ldpc())


@pytest.mark.parametrize("code", ["convolutional", "ldpc"])
def test_a_code_without_the_extra_radio_is_refused_before_anything_is_written(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nmoe.channel.sionna.find_spec", lambda name: None)
    words = ["train", "--channel", "awgn", "--transmission", f"digital:8:qpsk:{code}", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(cli.app, words)
    assert isinstance(done.exception, EngineError)
    assert "need the extra radio: pip install nmoe[radio]" in str(done.exception)
    assert not (tmp_path / "run").exists()


@given(st.floats(-200, 200), st.floats(-200, 200))
def test_ranges_are_read_or_refused(low: float, high: float) -> None:
    text = f"{low!r}:{high!r}"
    if low <= high:
        assert parse_snr(text) == (low, high)
    else:
        with pytest.raises(ValueError, match=r"the lower one first, got"):
            parse_snr(text)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"channel": "nakagami"}, "channel must be one of awgn, rayleigh, rician:K, got 'nakagami'"),
        ({"channel": "rician"}, "channel must be one of awgn, rayleigh, rician:K, got 'rician'"),
        ({"channel": "rician:K"}, "got 'rician:K'"),
        ({"channel": "rician:nan"}, "got 'rician:nan'"),
        ({"channel": "rician:-1"}, "-1"),
        ({"channel": ""}, "channel must be one of"),
        ({"channel": "awgn", "snr": "20"}, "snr must be LOW:HIGH in dB, got '20'"),
        ({"channel": "awgn", "snr": "a:b"}, "snr must be LOW:HIGH in dB, got 'a:b'"),
        ({"channel": "awgn", "snr": "nan:3"}, "snr must be LOW:HIGH in dB, got 'nan:3'"),
        ({"channel": "awgn", "snr": "1:2:3"}, "snr must be LOW:HIGH in dB, got '1:2:3'"),
        ({"channel": "awgn", "snr": "20:-10"}, "snr must be LOW:HIGH in dB, the lower one first, got '20:-10'"),
        ({"channel": "awgn", "snr": "-10:inf"}, "got '-10:inf'"),
        ({"channel": "awgn", "snr": "0:1e4"}, "within -200:200 dB wanted"),
        ({"channel": "awgn", "transmission": "am"}, "transmission must be one of analog, digital[:BITS[:MODULATION[:CODE]]], got 'am'"),
        ({"channel": "awgn", "transmission": "analog:8"}, "transmission must be one of analog, digital[:BITS"),
        ({"channel": "awgn", "transmission": "digital:8:qpsk:none:soft"}, "transmission must be one of analog, digital[:BITS"),
        (
            {"channel": "awgn", "transmission": "digital:8:pam"},
            "modulation of the transmission must be one of bpsk, qpsk, 16qam, got 'pam'",
        ),
        ({"channel": "awgn", "transmission": "digital:8:"}, "modulation of the transmission must be one of bpsk, qpsk, 16qam, got ''"),
        (
            {"channel": "awgn", "transmission": "digital:8:qpsk:turbo"},
            "code of the transmission must be one of none, repetition, convolutional, ldpc, got 'turbo'",
        ),
        ({"channel": "awgn", "transmission": "digital:x:qpsk"}, "got 'digital:x:qpsk'"),
        ({"channel": "awgn", "transmission": "digital:"}, "got 'digital:'"),
        ({"channel": "awgn", "transmission": "digital:4.5"}, "got 'digital:4.5'"),
        ({"channel": "awgn", "transmission": f"digital:{10**400}"}, "transmission must be one of analog, digital[:BITS"),
        ({"channel": "awgn", "transmission": "digital:1"}, "1"),
        ({"channel": "awgn", "transmission": "digital:64"}, "64"),
        ({"channel": "awgn", "channel_gate": "mlp"}, "channel gate must be one of additive, joint, got 'mlp'"),
        ({"channel": "awgn", "collapse_weight": -0.1}, "collapse weight must be at least 0, got -0.1"),
        ({"channel": "awgn", "collapse_weight": math.inf}, "collapse weight must be at least 0, got inf"),
        ({"channel": "awgn", "gate_rounds": 1}, "gate_rounds must be at least 2 with a channel"),
        ({"snr": "-10:20"}, "snr says how a channel is used and needs one, got -10:20 without a channel"),
        ({"transmission": "digital"}, "transmission says how a channel is used"),
        ({"channel_gate": "joint"}, "channel gate says how a channel is used"),
        ({"collapse_weight": 0.1}, "collapse weight says how a channel is used"),
    ],
)
def test_wrong_option_is_one_clear_line(wrong: dict, words: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        TrainOptions(**wrong)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_configuration_reads_back_and_older_ones_have_no_channel(tmp_path: Path) -> None:
    options = TrainOptions(channel="rician:3", snr="-10:20", channel_gate="joint", collapse_weight=0.02)
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(options)))
    assert read_options(tmp_path) == options
    (tmp_path / "config.json").write_text(json.dumps({"nodes": 4}))
    assert read_options(tmp_path).radio() is None


def test_a_channel_adds_one_control_stage_and_changes_the_gate_alone() -> None:
    plain, noisy = (program_of(TrainOptions(gate_rounds=8, **words), None) for words in ({}, {"channel": "rayleigh"}))
    names = [stage.name for stage in plain.stages()]
    assert [stage.name for stage in noisy.stages()] == [*names[: names.index(BUNDLES) + 1], NAIVE_GATES, *names[names.index(BUNDLES) + 1 :]]
    assert plain.gates().links is None
    assert plain.gates().gate == noisy.naive_gates().gate
    assert noisy.gates().gate.kind == "channel_aware"
    assert noisy.gates().links.clean_rounds == 2
    assert noisy.naive_gates().logits_of == GATES


def test_nodes_are_told_of_the_channel_in_words() -> None:
    assert channel_words(TrainOptions()) == []
    told = channel_words(TrainOptions(channel="awgn", seed=3))
    assert told == ["--channel=awgn", "--snr=-10:20", "--transmission=analog", "--channel-seed=3"]
