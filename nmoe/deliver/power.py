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
8 r = y B log2(1 + gamma / y). Then with s = 8 r ln 2 / (B gamma) the share is y = gamma / x, x > 0 the root of log(1 + x) = s x; no share
is enough unless s < 1.

Departures: the second law is ours. The root is -(1/s) W(-s e^(-s)) - 1, W Lambert's function on branch -1; it is found by Newton's method,
from above, for SciPy's W is wrong by half next to its branch point, which is where bad links are.
"""

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

Values = Float[ndarray, " link"]
Flags = Bool[ndarray, " link"]

STEPS = 8  # of Newton's method; 6 are enough for any link


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
    snr = _snr(spectral_efficiency)
    s = rate_per_hz * np.log(2) / snr
    shares: Values = np.full_like(s, np.inf)
    within = np.flatnonzero(s < 1)
    s = s[within]
    lowest, ratio = 2 * (1 - s) / s, (1 - s) * (1 + s) / s**2  # 2 x / (2 + x) <= log(1 + x) <= x / sqrt(1 + x)
    for _ in range(STEPS):
        ratio = np.maximum(ratio - (np.log1p(ratio) - s * ratio) / (1 / (1 + ratio) - s), lowest)
    shares[within] = snr[within] / ratio
    return shares


def _snr(spectral_efficiency: Values) -> Values:
    return np.asarray(np.expm1(spectral_efficiency * np.log(2)))


def _log2_of_one_plus(ratio: Values) -> Values:
    return np.asarray(np.log1p(ratio) / np.log(2))
