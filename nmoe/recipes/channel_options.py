"""Channel options: what a user says about radio links, in words, turned into one ``Radio``."""

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

from nmoe.channel.analog import Analog
from nmoe.channel.base import Fading, Transmission
from nmoe.channel.coding import Code, Convolutional, Ldpc, Repetition, Uncoded
from nmoe.channel.digital import Digital
from nmoe.channel.fading import Awgn, Rayleigh, Rician
from nmoe.channel.modulation import Bpsk, Modulation, Qam16, Qpsk
from nmoe.channel.radio import Radio

CHANNELS = ("awgn", "rayleigh", "rician:K")
TRANSMISSIONS = ("analog", "digital[:BITS[:MODULATION[:CODE]]]")
MODULATIONS: Mapping[str, type[Modulation]] = {"bpsk": Bpsk, "qpsk": Qpsk, "16qam": Qam16}
CODES: Mapping[str, type[Code]] = {"none": Uncoded, "repetition": Repetition, "convolutional": Convolutional, "ldpc": Ldpc}
CHANNEL_GATES = ("additive", "joint")
DEFAULT_SNR = "-10:20"  # spec: ours, the paper's range is not known
DEFAULT_DIGITAL = ("8", "qpsk", "none")
Number = TypeVar("Number", int, float)


def parse_radio(channel: str, snr: str, transmission: str) -> Radio:
    """Make the links of a run.

    Args:
        channel: one of ``CHANNELS``; K is the ratio, not in dB, of the direct to the scattered power.
        snr: range ``LOW:HIGH`` of mean SNRs in dB.
        transmission: one of ``TRANSMISSIONS``; see ``parse_transmission``.

    Raises:
        ValueError: when one of them is something else, or its number is out of range.
        EngineError: when the code needs Sionna and it is not installed.
    """
    low_db, high_db = parse_snr(snr)
    return Radio(fading=parse_fading(channel), transmission=parse_transmission(transmission), low_db=low_db, high_db=high_db)


def parse_fading(text: str) -> Fading:
    """Read ``awgn``, ``rayleigh`` or ``rician:K``.

    Raises:
        ValueError: when it is none of them or K is out of range.
    """
    kind, _, number = text.partition(":")
    if text == "awgn":
        return Awgn()
    if text == "rayleigh":
        return Rayleigh()
    if kind == "rician":
        return Rician(k_factor=read_number("channel", text, number, float, CHANNELS))
    raise wrong_choice("channel", text, CHANNELS)


def parse_snr(text: str) -> tuple[float, float]:
    """Read ``LOW:HIGH`` in dB.

    Raises:
        ValueError: when it is not two finite numbers, the lower one first.
    """
    low, _, high = text.partition(":")
    low_db, high_db = (read_number("snr", text, word, float, ("LOW:HIGH in dB",)) for word in (low, high))
    if not low_db <= high_db:
        raise ValueError(f"snr must be LOW:HIGH in dB, the lower one first, got {text!r}")
    return low_db, high_db


def parse_transmission(text: str) -> Transmission:
    """Read ``analog`` or ``digital[:BITS[:MODULATION[:CODE]]]``.

    Args:
        text: digital takes 2 to 16 bits per number, one of ``MODULATIONS`` and one of ``CODES``; 8, qpsk and none where they are not said.

    Raises:
        ValueError: when it is something else, or the bits are out of range.
        EngineError: when the code needs Sionna and it is not installed.
    """
    if text == "analog":
        return Analog()
    kind, *words = text.split(":")
    if kind != "digital" or len(words) > len(DEFAULT_DIGITAL):
        raise wrong_choice("transmission", text, TRANSMISSIONS)
    number, modulation, code = (*words, *DEFAULT_DIGITAL[len(words) :])
    bits = read_number("transmission", text, number, int, TRANSMISSIONS)
    if modulation not in MODULATIONS:
        raise wrong_choice("modulation of the transmission", modulation, tuple(MODULATIONS))
    if code not in CODES:
        raise wrong_choice("code of the transmission", code, tuple(CODES))
    return Digital(bits=bits, modulation=MODULATIONS[modulation](), code=CODES[code]())


def read_number(name: str, text: str, number: str, kind: Callable[[str], Number], choices: tuple[str, ...]) -> Number:
    """Read the number in an option's word.

    Args:
        name: of the option.
        text: the whole word.
        number: its part that should be a number.
        kind: of the number.
        choices: forms that the word may have.

    Raises:
        ValueError: when it is no finite number of that kind.
    """
    try:
        value = kind(number)
        finite = math.isfinite(value)
    except (ValueError, OverflowError):  # of a whole number beyond float's range
        raise wrong_choice(name, text, choices) from None
    if not finite:
        raise wrong_choice(name, text, choices)
    return value


def wrong_choice(name: str, text: str, choices: tuple[str, ...]) -> ValueError:
    """Return the error that an option's word has none of its forms."""
    wanted = f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    return ValueError(f"{name} must be {wanted}, got {text!r}")
