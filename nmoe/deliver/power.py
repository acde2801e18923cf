"""Power: the rate of a share of the bandwidth, and the share that a rate needs.

Source: G. Qu, T. Li, Q. Chen, X. Chen, S. Zhou, arXiv 2512.20946, gives the rate y B R. R = log2(1 + gamma) is the link's spectral
efficiency over the whole band, gamma its SNR there.

| symbol | here | unit |
|---|---|---|
| y | share | 1 |
| B | bandwidth_hz | Hz |
| R | spectral_efficiency | bit/s/Hz |
| gamma | snr | 1 |
| r | rate | byte/s |

One power per Hz: the SNR does not depend on the share, 8 r = y B R. One power per user (fixed_power): all of it goes into the share,
8 r = y B log2(1 + gamma / y). Then with s = 8 r ln 2 / (B gamma) the share is y = gamma / (w - 1), w = -(1/s) W(-s e^(-s)), W Lambert's
function on branch -1; no share is enough unless s < 1.

Departures: the second law is ours.
"""

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

Values = Float[ndarray, " link"]
Flags = Bool[ndarray, " link"]

POLISH = 2  # steps of Newton's method after Lambert's function, which near its branch point (bad links) has half of the digits only


def rate_of_share(share: Values, *, bandwidth_hz: float, spectral_efficiency: Values, fixed_power: Flags) -> Values:
    """Return the rates in bytes/s of shares of the band, above 0."""
    own = share * _log2_of_one_plus(_snr(spectral_efficiency) / share)
    return np.asarray(bandwidth_hz * np.where(fixed_power, own, share * spectral_efficiency) / 8)


def share_of_rate(rate: Values, *, bandwidth_hz: float, spectral_efficiency: Values, fixed_power: Flags) -> Values:
    """Return the shares that rates in bytes/s need; above 1 where all of the band is too little, infinite where no share would do."""
    shares = np.asarray(8 * rate / (bandwidth_hz * spectral_efficiency))
    own = np.flatnonzero(fixed_power & np.isfinite(rate))
    if own.size:
        shares[own] = _share_at_fixed_power(8 * rate[own] / bandwidth_hz, spectral_efficiency[own])
    return shares


def _share_at_fixed_power(rate_per_hz: Values, spectral_efficiency: Values) -> Values:
    """Return the shares for rates in bit/s per Hz of the whole band, with one power per link."""
    from scipy.special import lambertw  # 0.2 s, and few need it

    snr = _snr(spectral_efficiency)
    s = rate_per_hz * np.log(2) / snr
    shares: Values = np.full_like(s, np.inf)
    within = np.flatnonzero(s < 1)
    snr, s, rate_per_hz = snr[within], s[within], rate_per_hz[within]
    w: Values = -lambertw(-s * np.exp(-s), k=-1).real / s
    share = np.divide(snr, w - 1, out=np.full_like(w, np.inf), where=w > 1)
    for _ in range(POLISH):
        finite = np.flatnonzero(np.isfinite(share))
        y, ratio = share[finite], snr[finite] / share[finite]
        slope = _log2_of_one_plus(ratio) - ratio / (1 + ratio) / np.log(2)
        short = rate_per_hz[finite] - y * _log2_of_one_plus(ratio)
        share[finite] = y + np.divide(short, slope, out=np.zeros_like(y), where=slope > 0)
    shares[within] = share
    return shares


def _snr(spectral_efficiency: Values) -> Values:
    return np.asarray(np.expm1(spectral_efficiency * np.log(2)))


def _log2_of_one_plus(ratio: Values) -> Values:
    return np.asarray(np.log1p(ratio) / np.log(2))
