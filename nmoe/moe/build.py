"""From a bundle to modules and back: the one place where a kind named on disk becomes a class.

A module is rebuilt from its ``ModelSpec`` and its tensors; names and shapes must match exactly.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nmoe.core.bundle import Bundle, ModelSpec
from nmoe.core.errors import BundleError
from nmoe.moe.channel_gate import ChannelAwareGate, SnrGate
from nmoe.moe.expert import Expert, LinearHead, MlpExpert
from nmoe.moe.extractor import ConvExtractor, Extractor
from nmoe.moe.fixup import FixupResNet, FixupTail
from nmoe.moe.gate import Gate, TopKGate
from nmoe.moe.layer import Mix
from nmoe.moe.lenet import LeNet, LeNetTail
from nmoe.moe.vit import VisionTransformer, VisionTransformerTail

KINDS: dict[str, type[nn.Module]] = {
    "conv": ConvExtractor,
    "lenet": LeNet,
    "fixup_resnet": FixupResNet,
    "vit": VisionTransformer,
    "mlp": MlpExpert,
    "lenet_tail": LeNetTail,
    "fixup_tail": FixupTail,
    "vit_tail": VisionTransformerTail,
    "linear": LinearHead,
    "top_k": TopKGate,
    "channel_aware": ChannelAwareGate,
    "snr": SnrGate,
}


class NodeModel(NamedTuple):
    """What one node runs: the shared extractor, its own expert and its gate, in evaluation mode."""

    extractor: Extractor
    expert: Expert
    gate: Gate
    mix: Mix


def build(spec: ModelSpec, *, generator: torch.Generator) -> nn.Module:
    """Make a module with fresh weights.

    Args:
        spec: kind and keyword arguments.
        generator: draws the initial weights.

    Raises:
        ValueError: when the kind is unknown or the arguments do not fit it.
    """
    if spec.kind not in KINDS:
        raise ValueError(f"module kind must be one of {', '.join(KINDS)}, got {spec.kind!r}")
    make: Callable[..., nn.Module] = KINDS[spec.kind]
    try:
        return make(**spec.arguments, generator=generator)
    except (TypeError, RuntimeError) as error:  # torch's word for a negative or too large size is RuntimeError
        raise ValueError(f"arguments of {spec.kind!r} do not fit: {error}") from error


def fresh_extractor(spec: ModelSpec, *, pixel_mean: Sequence[float], pixel_std: Sequence[float], generator: torch.Generator) -> Extractor:
    """Make an extractor with fresh weights and the given pixel constants, one per channel.

    Raises:
        ValueError: when the spec is not an extractor's.
    """
    extractor = build(spec, generator=generator)
    if not isinstance(extractor, Extractor):
        raise ValueError(f"an extractor is wanted, got kind {spec.kind!r}")
    extractor.pixel_mean.copy_(torch.tensor(pixel_mean))
    extractor.pixel_std.copy_(torch.tensor(pixel_std))
    return extractor


def restore(spec: ModelSpec, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Rebuild a module from its spec and tensors, frozen and in evaluation mode.

    Raises:
        ValueError: when a tensor is missing, unknown or of another dtype or shape.
    """
    module = build(spec, generator=torch.Generator())
    wanted = {name: f"{tensor.dtype} {list(tensor.shape)}" for name, tensor in module.state_dict().items()}
    given = {name: f"{tensor.dtype} {list(tensor.shape)}" for name, tensor in tensors.items()}
    if wanted != given:
        differing = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
        first = differing[0]
        raise ValueError(f"tensor {first!r} of {spec.kind!r}: {wanted.get(first)} wanted, {given.get(first)} found")
    module.load_state_dict(dict(tensors))
    return module.eval().requires_grad_(False)


def node_model(bundle: Bundle) -> NodeModel:
    """Build the modules of a verified bundle.

    Raises:
        BundleError: when a part is of the wrong family or its tensors do not fit its spec.
    """
    card, tensors = bundle.card, bundle.tensors
    try:
        extractor = restore(card.extractor, tensors["extractor"])
        expert = restore(card.expert, tensors["expert"])
        gate = restore(card.gate, tensors["gate"])
    except ValueError as error:
        raise BundleError(f"bundle of {card.node}: {error}") from error
    if not (isinstance(extractor, Extractor) and isinstance(expert, Expert) and isinstance(gate, Gate)):
        raise BundleError(f"bundle of {card.node}: its parts are not an extractor, an expert and a gate")
    if gate.num_experts != len(card.experts) or expert.num_classes != card.num_classes:
        raise BundleError(f"bundle of {card.node}: gate or expert has another number of outputs than the card says")
    if {expert.feature_dim, gate.feature_dim} != {extractor.feature_dim} or not extractor.takes(card.image_shape):
        raise BundleError(f"bundle of {card.node}: images, extractor, expert and gate do not take what the one before gives")
    return NodeModel(extractor=extractor, expert=expert, gate=gate, mix=Mix(card.mix))
