"""Radio: every sample crosses every link with that link's noise; batches that differ are refused."""

import inspect
import math

import pytest
import torch
from jaxtyping import TypeCheckError

from nmoe.channel.analog import Analog
from nmoe.channel.fading import Awgn
from nmoe.channel.radio import Radio

RADIO = Radio(fading=Awgn(), transmission=Analog(), low_db=-10.0, high_db=20.0)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_every_sample_crosses_every_link():
    features = torch.arange(6.0).reshape(2, 3)
    snr = torch.tensor([[math.inf, 1.0], [1.0, math.inf]])
    arrived = RADIO.send(features, snr, generator=generator())
    assert arrived.shape == (2, 2, 3)
    for sample in (0, 1):
        assert torch.equal(arrived[sample, sample], features[sample])
        assert not torch.equal(arrived[sample, 1 - sample], features[sample])
    assert RADIO.send(features[:0], snr[:0], generator=generator()).shape == (0, 2, 3)


@pytest.mark.parametrize(
    ("features", "snr"), [((4, 3), (2, 2)), ((2, 3), (4, 1)), ((4, 3), (1, 2)), ((3,), (3, 1)), ((3, 2), (3,))], ids=repr
)
def test_batches_that_differ_are_refused_by_their_shapes(features, snr):
    """Shapes are checked at run time in tests alone: what users get is the function beneath."""
    words = rf"features \[batch, dim\] and SNRs \[batch, link\] of one batch wanted, got \{list(features)} and \{list(snr)}"
    with pytest.raises((ValueError, TypeCheckError)):
        RADIO.send(torch.ones(features), torch.ones(snr), generator=generator())
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(Radio.send)(RADIO, torch.ones(features), torch.ones(snr), generator=generator())
