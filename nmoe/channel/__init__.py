"""Channel: radio links. Fading and path loss, what noise or bit errors do to features, rates, and what a node knows of its links."""

from nmoe.channel.analog import Analog
from nmoe.channel.base import Fading, PathLoss, Transmission
from nmoe.channel.coding import Code, Convolutional, Ldpc, Repetition, Uncoded
from nmoe.channel.digital import Digital
from nmoe.channel.fading import Awgn, Rayleigh, Rician, rayleigh_outage, rician_outage
from nmoe.channel.knowledge import Blurred, Estimated, Exact, Knowledge, Reported
from nmoe.channel.link_budget import LinkBudget
from nmoe.channel.mobility import Moving, doppler_hz, jakes_correlation
from nmoe.channel.modulation import Bpsk, Modulation, Qam16, Qpsk
from nmoe.channel.path_loss import FreeSpace, UrbanMacro, UrbanMicro, line_of_sight_probability
from nmoe.channel.positions import local_metres, read_positions
from nmoe.channel.quantise import dequantise, distortion_snr, quantise
from nmoe.channel.radio import Radio
from nmoe.channel.rate import cqi_of_snr, rate_of_snr, shannon_rate, shannon_snr, snr_of_cqi
from nmoe.channel.shadowing import Shadowing
from nmoe.channel.trace import LinkSample, LinkTrace, read_trace

__all__ = [
    "Analog",
    "Awgn",
    "Blurred",
    "Bpsk",
    "Code",
    "Convolutional",
    "Digital",
    "Estimated",
    "Exact",
    "Fading",
    "FreeSpace",
    "Knowledge",
    "Ldpc",
    "LinkBudget",
    "LinkSample",
    "LinkTrace",
    "Modulation",
    "Moving",
    "PathLoss",
    "Qam16",
    "Qpsk",
    "Radio",
    "Rayleigh",
    "Repetition",
    "Reported",
    "Rician",
    "Shadowing",
    "Transmission",
    "Uncoded",
    "UrbanMacro",
    "UrbanMicro",
    "cqi_of_snr",
    "dequantise",
    "distortion_snr",
    "doppler_hz",
    "jakes_correlation",
    "line_of_sight_probability",
    "local_metres",
    "quantise",
    "rate_of_snr",
    "rayleigh_outage",
    "read_positions",
    "read_trace",
    "rician_outage",
    "shannon_rate",
    "shannon_snr",
    "snr_of_cqi",
]
