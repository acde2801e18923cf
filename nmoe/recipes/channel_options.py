"""Channel options: what a user says about radio links, in words, turned into one ``Radio``."""

import math

from nmoe.channel.analog import Analog
from nmoe.channel.base import Fading, Transmission
from nmoe.channel.digital import Digital
from nmoe.channel.fading import Awgn, Rayleigh, Rician
from nmoe.channel.modulation import Qpsk
from nmoe.channel.radio import Radio

CHANNELS = ("awgn", "rayleigh", "rician:K")
TRANSMISSIONS = ("analog", "digital", "digital:BITS")
CHANNEL_GATES = ("additive", "joint")
DEFAULT_SNR = "-10:20"  # spec: ours, the paper's range is not known


def parse_radio(channel: str, snr: str, transmission: str) -> Radio:
    """Make the links of a run.

    Args:
        channel: one of ``CHANNELS``; K is the ratio, not in dB, of the direct to the scattered power.
        snr: range ``LOW:HIGH`` of mean SNRs in dB.
        transmission: one of ``TRANSMISSIONS``; digital means uncoded QPSK, 8 bits per number unless said otherwise.

    Raises:
        ValueError: when one of them is something else, or its number is out of range.
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
        return Rician(k_factor=_number("channel", text, number, CHANNELS))
    raise _wrong("channel", text, CHANNELS)


def parse_snr(text: str) -> tuple[float, float]:
    """Read ``LOW:HIGH`` in dB.

    Raises:
        ValueError: when it is not two finite numbers, the lower one first.
    """
    low, _, high = text.partition(":")
    numbers = _number("snr", text, low, ("LOW:HIGH in dB",)), _number("snr", text, high, ("LOW:HIGH in dB",))
    if not numbers[0] <= numbers[1]:
        raise ValueError(f"snr must be LOW:HIGH in dB, the lower one first, got {text!r}")
    return numbers


def parse_transmission(text: str) -> Transmission:
    """Read ``analog``, ``digital`` or ``digital:BITS``.

    Raises:
        ValueError: when it is none of them or the bits are out of range.
    """
    kind, colon, number = text.partition(":")
    if text == "analog":
        return Analog()
    if kind != "digital":
        raise _wrong("transmission", text, TRANSMISSIONS)
    bits = _number("transmission", text, number, TRANSMISSIONS) if colon else 8.0
    if bits != int(bits):
        raise _wrong("transmission", text, TRANSMISSIONS)
    return Digital(bits=int(bits), modulation=Qpsk())


def _number(name: str, text: str, number: str, choices: tuple[str, ...]) -> float:
    try:
        value = float(number)
    except ValueError:
        raise _wrong(name, text, choices) from None
    if not math.isfinite(value):
        raise _wrong(name, text, choices)
    return value


def _wrong(name: str, text: str, choices: tuple[str, ...]) -> ValueError:
    wanted = f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    return ValueError(f"{name} must be {wanted}, got {text!r}")
