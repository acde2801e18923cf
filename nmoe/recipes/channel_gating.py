"""Reproduction of channel-aware gating: accuracy against mean SNR for gates that see features, links, both or neither.

Source: channel-aware gating (arXiv 2504.00819): backbones cut in two, experts behind Rayleigh links, analog and digital transmission, naive
gating as the baseline. Every number here is ours; the paper's are not known to us.

What is compared: one mixture is trained over perfect channels, and then, once per gate and from the same weights, over links whose mean SNR
is uniform in [-10, 20] dB. All gates get the same images in the same order, the same SNRs and as many epochs; noise is drawn after the
choice of experts, so it is of the same law but not the same. Then the test set is answered at each mean SNR, over new links that are the
same for every gate.

    unequal   the links of a sample have mean SNRs of mean + (-10, ..., 10) dB, evenly spaced, in an order drawn per sample
    equal     all links have the same mean SNR; only fading tells them apart

Departures: digital transmission is tested on mixtures trained on analog noise (an option of the spec), 8 bits per number, QPSK, on fewer
images, above all where bits are decoded, which takes long. SNRs are per symbol whatever the code: a code's gain is paid for in symbols
(``symbols_per_number``). Every gate begins anew over links, and for ``links_first`` epochs only the SNR branch of those that have one
learns: with experts that nobody else can replace, no gate could leave a bad link (LOG.md); the naive gate gains from beginning anew too.
Controls beyond the paper's: a gate that is told SNRs with errors, or as a device reports them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nmoe.channel.analog import Analog
from nmoe.channel.base import Transmission
from nmoe.channel.coding import Convolutional, Ldpc, Repetition
from nmoe.channel.digital import Digital
from nmoe.channel.fading import Rayleigh
from nmoe.channel.knowledge import Blurred, Exact, Reported
from nmoe.channel.modulation import Qpsk
from nmoe.channel.radio import Radio
from nmoe.core.bundle import ModelSpec
from nmoe.core.seeds import torch_generator
from nmoe.data import ImageDataset, TrainTest, to_unit
from nmoe.learn.channel_gating import ChannelTraining, LinkedMixture
from nmoe.moe import ChannelAwareGate, Expert, Gate, Mix, SnrGate, TopKGate, build, cuts, fresh_extractor, split
from nmoe.moe.extractor import Extractor
from nmoe.recipes.channel_curves import LinkedAnswers, MeanLinks, answer, mean_and_std, nested
from nmoe.recipes.program import PIXELS
from nmoe.recipes.watch import Progress

NAME = "channel-gating"
METHODS = ("aware", "aware_joint", "naive", "snr_only", "random")
CODED = ("aware", "naive")  # the gates that coded transmission is tested with
MEANS_DB = (-10, -5, 0, 5, 10, 15, 20, 25, 30)
RADIO = Radio(fading=Rayleigh(), transmission=Analog(), low_db=-10.0, high_db=20.0)  # of training; the range is the spec's
SPREAD_DB = 10.0  # unequal links lie at most so far from the mean
TOLD = {"aware_blurred": Blurred(sigma_db=3.0), "aware_reported": Reported()}  # what else the aware gate may be told
RANKS_AT_DB = 0  # mean SNR at which choices are counted by the rank of their link


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How large a reproduction is.

    Attributes:
        backbone: one of those of ``nmoe.moe.split``, or ``conv``, the small extractor for images of 8 x 8 and more, without a cut.
        cut: where the backbone is cut.
        networks: sizes of each backbone.
        expert_dim: hidden units of experts that are perceptrons; 0 for the backbone's own rest.
        experts, k: experts there are, and asked per sample.
        clean: training over perfect channels.
        links: training over links.
        train, test: most images used; None for all.
        digital_test: most images that digital transmission is tested with, without decoders.
        coded_test: most images that it is tested with where bits are decoded, which takes long.
        means_db: mean SNRs tested.
        transmissions: tested beside analog, by name.
    """

    backbone: str
    cut: str | int
    networks: Mapping[str, Mapping[str, int]]
    expert_dim: int
    experts: int = 5
    k: int = 2
    clean: ChannelTraining
    links: ChannelTraining
    train: int | None = None
    test: int | None = None
    digital_test: int = 2000
    coded_test: int = 250
    means_db: Sequence[int] = MEANS_DB
    transmissions: Mapping[str, Callable[[], Transmission]]


def digital() -> Transmission:
    """Return digital transmission without a code."""
    return Digital(modulation=Qpsk())


def repeated() -> Transmission:
    """Return digital transmission that sends every bit three times."""
    return Digital(code=Repetition(times=3), modulation=Qpsk())


def convolutional() -> Transmission:
    """Return digital transmission with a convolutional code of rate 1/2."""
    return Digital(code=Convolutional(constraint_length=5), modulation=Qpsk(), soft=True)


def ldpc() -> Transmission:
    """Return digital transmission with 5G's LDPC code at rate 1/2."""
    return Digital(code=Ldpc(), modulation=Qpsk(), soft=True)


PLAIN = {"digital": digital, "digital_repetition": repeated}
CODES = PLAIN | {"digital_convolutional": convolutional}

CONV_DIM = 64
LAST_CUTS = {"conv": "end", "lenet": "pool2", "fixup_resnet": "stage3", "vit": "cls"}  # where a network is cut if the user does not say
SMALL = {"lenet": {}, "fixup_resnet": {"widen": 1}, "vit": {"patch_size": 4, "width": 48, "depth": 2, "heads": 2}}
LARGE = {"lenet": {}, "fixup_resnet": {"widen": 4}, "vit": {"patch_size": 4, "width": 192, "depth": 6, "heads": 3}}

CPU = Scale(
    backbone="lenet",
    cut="pool2",
    networks=SMALL,
    expert_dim=8,
    clean=ChannelTraining(epochs=10),
    links=ChannelTraining(epochs=20, links_first=8),
    transmissions=CODES,
)
PAPER = Scale(
    backbone="fixup_resnet",
    cut="stage3",
    networks=LARGE,
    expert_dim=64,
    clean=ChannelTraining(epochs=60, lr=1e-3),
    links=ChannelTraining(epochs=60, lr=1e-3, links_first=20),
    digital_test=10_000,
    coded_test=2000,
    transmissions=CODES | {"digital_ldpc": ldpc},
)
PAPER_VIT = replace(PAPER, backbone="vit", cut="cls")


class TrialParts(NamedTuple):
    """What all mixtures of one seed are made of and measured on; images in [0, 1]."""

    train: Float[Tensor, "sample channel height width"]
    train_labels: Int[Tensor, " sample"]
    test: Float[Tensor, "sample channel height width"]
    test_labels: Int[Tensor, " sample"]
    extractor: ModelSpec
    expert: ModelSpec
    pixels: tuple[tuple[float, ...], tuple[float, ...]]


def sized(scale: Scale, *, backbone: str | None, cut: str | None, expert_dim: int | None) -> Scale:
    """Return a scale with another network, cut or experts; None leaves one as it is.

    Raises:
        ValueError: when there is no such backbone or cut, or ``expert_dim`` is negative.
    """
    if expert_dim is not None and expert_dim < 0:
        raise ValueError(f"expert dim must be at least 0, got {expert_dim}")
    if backbone is not None and backbone != scale.backbone:
        if backbone not in LAST_CUTS:
            raise ValueError(f"backbone must be one of {', '.join(LAST_CUTS)}, got {backbone!r}")
        scale = replace(scale, backbone=backbone, cut=LAST_CUTS[backbone])
    if cut is not None:
        known = ("end",) if scale.backbone == "conv" else cuts(scale.backbone, scale.networks[scale.backbone])
        places = {str(place): place for place in known}
        if cut not in places:
            raise ValueError(f"{scale.backbone} can be cut at {', '.join(places)}, got {cut!r}")
        scale = replace(scale, cut=places[cut])
    return scale if expert_dim is None else replace(scale, expert_dim=expert_dim)


def quick(scale: Scale) -> Scale:
    """Return a scale that ends within a minute: fewer images, epochs and points, and smaller networks."""
    few = {"batch_size": 32, "lr": 4e-3}
    return replace(
        scale,
        networks=SMALL,
        clean=ChannelTraining(epochs=8, **few),  # type: ignore[arg-type]  # a dict of numbers
        links=ChannelTraining(epochs=8, links_first=3, **few),  # type: ignore[arg-type]
        train=1000,
        test=400,
        means_db=(-10, 0, 10, 30),
        transmissions=PLAIN,
    )


def parts_of(scale: Scale, data: TrainTest, *, seed: int) -> TrialParts:
    """Cut the data to size and choose the networks.

    Raises:
        ValueError: when the images do not fit the backbone, or the small extractor, of which nothing is left, is to be its own expert.
    """
    train, test = data.train, data.test
    chosen = torch.randperm(len(train.labels), generator=torch_generator(seed, NAME, "train")).numpy()[: scale.train]
    tested = torch.randperm(len(test.labels), generator=torch_generator(seed, NAME, "test")).numpy()[: scale.test]
    extractor, expert = networks_of(scale, train)
    half = (0.5,) * train.image_shape[2]
    return TrialParts(
        train=to_unit(train.images[chosen]),
        train_labels=torch.from_numpy(train.labels[chosen]),
        test=to_unit(test.images[tested]),
        test_labels=torch.from_numpy(test.labels[tested]),
        extractor=extractor,
        expert=expert,
        pixels=PIXELS.get(train.name, (half, half)),
    )


def networks_of(scale: Scale, images: ImageDataset) -> tuple[ModelSpec, ModelSpec]:
    """Return the extractor and an expert for images of this shape; errors as in ``parts_of``."""
    height, width, channels = images.image_shape
    if height != width:
        raise ValueError(f"square images wanted, got {height} x {width}")
    if scale.backbone == "conv":
        if not scale.expert_dim:
            raise ValueError("experts behind the small extractor are perceptrons: an expert dim of at least 1 wanted, got 0")
        extractor = ModelSpec(kind="conv", arguments={"in_channels": channels, "feature_dim": CONV_DIM})
    else:
        shape = {"in_channels": channels, "image_size": height, "num_classes": images.num_classes}
        extractor, expert = split(scale.backbone, scale.cut, **shape, sizes=scale.networks[scale.backbone])
    unit, zero = [1.0] * channels, [0.0] * channels
    built = fresh_extractor(extractor, pixel_mean=zero, pixel_std=unit, generator=torch.Generator())  # says what does not fit
    if scale.expert_dim:
        sizes = {"feature_dim": built.feature_dim, "hidden_dim": scale.expert_dim, "num_classes": images.num_classes}
        expert = ModelSpec(kind="mlp", arguments=dict(sizes))
    return extractor, expert


def trained(scale: Scale, parts: TrialParts, *, seed: int, device: torch.device, progress: Progress) -> Iterator[tuple[str, LinkedMixture]]:
    """Train the mixture over perfect channels, then yield it as trained over links with each method's gate."""
    train, labels = parts.train.to(device), parts.train_labels.to(device)
    generator = torch_generator(seed, NAME, "weights")
    mean, deviation = parts.pixels
    extractor = fresh_extractor(parts.extractor, pixel_mean=mean, pixel_std=deviation, generator=generator)
    experts = [build(parts.expert, generator=generator) for _ in range(scale.experts)]
    assert all(isinstance(expert, Expert) for expert in experts)
    gate = TopKGate(feature_dim=extractor.feature_dim, num_experts=scale.experts, trunk_dim=0, noisy=False, generator=generator)
    clean = LinkedMixture(extractor=extractor, experts=experts, gate=gate, k=scale.k, mix=Mix.PROBABILITIES).to(device)  # type: ignore[arg-type]

    def run(training: ChannelTraining, mixture: LinkedMixture, radio: Radio | None, stage: str) -> None:
        training.run(
            mixture,
            train,
            labels,
            radio,
            order=torch_generator(seed, NAME, "order", "clean" if radio is None else "links"),
            links=torch_generator(seed, NAME, "links", device=device),
            noise=torch_generator(seed, NAME, "noise", device=device),
            after_epoch=lambda done: progress.stage(f"seed {seed}: {stage}", done, training.epochs),
        )

    run(scale.clean, clean, None, "perfect channels")
    for method in METHODS:
        mixture = deepcopy(clean)
        mixture.gate = _gate(method, scale.experts, torch_generator(seed, NAME, "gate"), extractor)
        mixture.to(device)
        run(scale.links, mixture, RADIO, method)
        yield method, mixture


def _gate(method: str, experts: int, generator: torch.Generator, extractor: Extractor) -> Gate | None:
    """Return the gate a method begins stage 2 with: a new one, so that experts may share the work anew whatever the gate sees."""
    sizes = {"feature_dim": extractor.feature_dim, "num_experts": experts}
    match method:
        case "aware" | "aware_joint":
            return ChannelAwareGate(**sizes, joint=method == "aware_joint", generator=generator)
        case "naive":
            return TopKGate(**sizes, trunk_dim=0, noisy=False, generator=generator)
        case "snr_only":
            return SnrGate(**sizes, generator=generator)
        case _:
            return None


class Measured(NamedTuple):
    """What one mixture showed.

    Attributes:
        cells: accuracy by method, transmission and mean SNR in dB; the aware gate stands for several, by what it is told.
        middle: the answers over unequal links of mean SNR ``RANKS_AT_DB``.
    """

    cells: dict[tuple[str, str, float], float]
    middle: LinkedAnswers


def measure(scale: Scale, parts: TrialParts, method: str, mixture: LinkedMixture, *, seed: int) -> Measured:
    """Answer the test set over all links and transmissions."""
    cells: dict[tuple[str, str, float], float] = {}
    images, labels = parts.test, parts.test_labels
    middle: LinkedAnswers | None = None
    for mean_db in scale.means_db:
        equal = MeanLinks("equal", mean_db, SPREAD_DB, RADIO.fading).draw(len(images), scale.experts, seed=seed)
        cells[method, "analog_equal", mean_db] = answer(mixture, images, labels, equal, RADIO.transmission, Exact(), seed=seed).accuracy
        links = MeanLinks("unequal", mean_db, SPREAD_DB, RADIO.fading).draw(len(images), scale.experts, seed=seed)
        said = answer(mixture, images, labels, links, RADIO.transmission, Exact(), seed=seed)
        cells[method, "analog", mean_db] = said.accuracy
        middle = said if mean_db == RANKS_AT_DB else middle
        for told, knowledge in TOLD.items() if method == "aware" else ():
            cells[told, "analog", mean_db] = answer(mixture, images, labels, links, RADIO.transmission, knowledge, seed=seed).accuracy
        for name, make in scale.transmissions.items():
            if name == "digital" or method in CODED:
                count = scale.digital_test if name in PLAIN else scale.coded_test
                said = answer(mixture, images[:count], labels[:count], links.first(count), make(), Exact(), seed=seed)
                cells[method, name, mean_db] = said.accuracy
    assert middle is not None
    return Measured(cells, middle)


def channel_gating(scale: Scale, data: TrainTest, *, seeds: int, device: torch.device, progress: Progress) -> dict[str, Any]:
    """Train and measure everything.

    Args:
        scale: how large.
        data: images to classify.
        seeds: how many times, at least 1.
        device: where it is computed.
        progress: told of every epoch.

    Returns:
        ``curves`` and ``spreads`` (``{method: {transmission: {snr_db: mean or standard deviation}}}``), ``selection`` (shares of choices by
        rank of the link, best first, per method), ``gate_entropy`` (share of the largest, per method), ``rows`` and ``settings``.

    Raises:
        ValueError: when ``seeds`` is below 1 or the images do not fit.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    cells: dict[tuple[str, str, float], list[float]] = {}
    middles: dict[str, list[LinkedAnswers]] = {}
    for seed in range(seeds):
        parts = parts_of(scale, data, seed=seed)
        for method, mixture in trained(scale, parts, seed=seed, device=device, progress=progress):
            found = measure(scale, parts, method, mixture, seed=seed)
            for cell, accuracy in found.cells.items():
                cells.setdefault(cell, []).append(accuracy)
            middles.setdefault(method, []).append(found.middle)
    stats = {cell: mean_and_std(values) for cell, values in cells.items()}
    rows = [
        {"method": method, "setting": f"{transmission}, {mean_db:g} dB", "metric": "accuracy", "mean": mean, "std": std, "n": seeds}
        for (method, transmission, mean_db), (mean, std) in stats.items()
    ]
    return {
        "curves": nested({cell: mean for cell, (mean, _) in stats.items()}),
        "spreads": nested({cell: std for cell, (_, std) in stats.items()}),
        "selection": {method: torch.stack([one.rank_shares for one in said]).mean(dim=0).tolist() for method, said in middles.items()},
        "gate_entropy": {method: mean_and_std([one.entropy for one in said])[0] for method, said in middles.items()},
        "settings": _settings(scale, data, parts),
        "rows": rows,
    }


def symbols_per_number(transmission: Transmission) -> float:
    """Return the complex symbols that carry one number, padding and tails left out."""
    if isinstance(transmission, Digital):
        return transmission.bits / transmission.code.rate / transmission.modulation.bits_per_symbol
    return 0.5  # analog: one number in phase, one in quadrature


def _settings(scale: Scale, data: TrainTest, parts: TrialParts) -> dict[str, Any]:
    carried = {"analog": RADIO.transmission} | {name: make() for name, make in scale.transmissions.items()}
    return {
        "data": data.train.name,
        "train": len(parts.train),
        "test": len(parts.test),
        "digital_test": min(scale.digital_test, len(parts.test)),
        "coded_test": min(scale.coded_test, len(parts.test)),
        "extractor": {"kind": parts.extractor.kind, **parts.extractor.arguments},
        "expert": {"kind": parts.expert.kind, **parts.expert.arguments},
        "experts": scale.experts,
        "k": scale.k,
        "clean": asdict(scale.clean),
        "links": asdict(scale.links),
        "fading": type(RADIO.fading).__name__,
        "train_snr_db": [RADIO.low_db, RADIO.high_db],
        "spread_db": SPREAD_DB,
        "symbols_per_number": {name: symbols_per_number(transmission) for name, transmission in carried.items()},
        "ranks_at_db": RANKS_AT_DB,
    }
