"""Bank: the experts that one node serves, computed together; and the extractor and gate of a node that answers requests.

Experts take and give numpy arrays, as they come off the wire. A bank never changes: a new version of a node's bundle is a new bank, and
requests that began with the old one end with it.
"""

import ctypes
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack

from nmoe.core.bundle import Bundle
from nmoe.moe.build import NodeModel, node_model
from nmoe.moe.expert import MlpExpert, StackedExperts

CHUNK_ROWS = 256  # images in the extractor at once: a large batch must not take a large memory
STACK_WASTE = 1.5  # experts of one shape run as one batched product if padding adds at most this factor of rows
STACK_ROWS = 32  # and only for few rows each: for more, separate products are as fast
KEEP_BYTES = 32 << 20  # the most that glibc takes


class ExpertBank:
    """Named experts with one input and one output width.

    Args:
        experts: modules from features [rows, in_dim] to outputs [rows, out_dim], by name.
        in_dim, out_dim: numbers per row.
        version: what the experts' weights are called on the wire.
    """

    def __init__(self, experts: Mapping[str, nn.Module], *, in_dim: int, out_dim: int, version: str) -> None:
        self.experts = {name: expert.eval() for name, expert in experts.items()}
        self.in_dim = in_dim
        self.out_dim = out_dim
        self.version = version
        self._stack: StackedExperts | None = None
        self._places = {name: place for place, name in enumerate(self.experts)}
        small = [expert for expert in self.experts.values() if isinstance(expert, MlpExpert)]
        shapes = {(expert.hidden.weight.shape, expert.output.weight.shape) for expert in small}
        if len(small) == len(self.experts) > 1 and len(shapes) == 1:
            self._stack = StackedExperts(small)

    @torch.inference_mode()
    def compute(self, parts: Sequence[tuple[str, np.ndarray]]) -> list[np.ndarray]:
        """Run experts on rows of features.

        Args:
            parts: expert and float32 features [rows, in_dim], each expert at most once.

        Returns:
            Their outputs, float32 [rows, out_dim], in order.
        """
        counts = [len(rows) for _, rows in parts]
        tallest = max(counts)
        alike = tallest <= STACK_ROWS and tallest * len(self.experts) <= STACK_WASTE * sum(counts)
        if self._stack is not None and len(parts) > 1 and alike:
            return self._compute_stacked(self._stack, parts, tallest)
        return [self.experts[name](_tensor(rows)).numpy() for name, rows in parts]

    def _compute_stacked(self, stack: StackedExperts, parts: Sequence[tuple[str, np.ndarray]], height: int) -> list[np.ndarray]:
        """Run all experts in two batched products, on rows padded to one height."""
        features = np.zeros((len(self.experts), height, self.in_dim), dtype=np.float32)
        for name, rows in parts:
            features[self._places[name], : len(rows)] = rows
        hidden = torch.baddbmm(stack.hidden_bias.unsqueeze(1), torch.from_numpy(features), stack.hidden_weight.transpose(1, 2)).relu()
        outputs = torch.baddbmm(stack.output_bias.unsqueeze(1), hidden, stack.output_weight.transpose(1, 2)).numpy()
        return [outputs[self._places[name], : len(rows)] for name, rows in parts]

    def no_prototypes(self) -> np.ndarray:
        """Return what stands where a node with classes shows its class means: [0, in_dim]."""
        return np.zeros((0, self.in_dim), dtype=np.float32)

    def gradient(self, name: str, rows: np.ndarray, gradients: np.ndarray) -> np.ndarray:
        """Return the derivative with respect to features [rows, in_dim] of the sum of outputs times ``gradients`` [rows, out_dim].

        The expert's own weights get no gradient and never change.
        """
        with torch.enable_grad():
            features = _tensor(rows).requires_grad_()
            outputs = self.experts[name](features)
            # as a sum: given the gradients of outputs, torch would first import sympy, 1.5 s and 40 MB
            (derivative,) = torch.autograd.grad((outputs * _tensor(gradients)).sum(), features)
        result: np.ndarray = derivative.numpy()
        return result


class NodeCompute:
    """What one bundle computes: its bank of one expert, its extractor and its gate.

    Args:
        bundle: a verified bundle.

    Raises:
        BundleError: when its parts do not fit its card.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.card = bundle.card
        self.model: NodeModel = node_model(bundle)
        self.feature_dim = self.model.extractor.feature_dim
        self.version = bundle.card.files["expert"].sha256[:8]
        experts = {bundle.card.node: self.model.expert}
        self.bank = ExpertBank(experts, in_dim=self.feature_dim, out_dim=bundle.card.num_classes, version=self.version)

    @torch.inference_mode()
    def features(self, images: Shaped[Tensor, "batch height width channel"]) -> Float[Tensor, "batch dim"]:
        """Return the features of images: uint8, or float32 between 0 and 1."""
        pixels = images.permute(0, 3, 1, 2)  # [batch, channel, height, width]
        if pixels.dtype == torch.uint8:
            pixels = pixels.to(torch.float32) / 255
        if len(pixels) <= CHUNK_ROWS:
            features: Tensor = self.model.extractor(pixels)
            return features
        return torch.cat([self.model.extractor(chunk) for chunk in torch.split(pixels, CHUNK_ROWS)])

    def warm_up(self) -> None:
        """Let torch do once what it does only once, so that the first request is not the slowest."""
        height, width, channels = self.card.image_shape
        features = self.features(torch.zeros(1, height, width, channels, dtype=torch.uint8))
        with torch.inference_mode():
            self.model.gate.scores(features)
        self.bank.compute([(self.card.node, features.numpy())])


def _tensor(rows: np.ndarray) -> Tensor:
    """Return rows as a tensor that shares their memory; unlike ``from_numpy`` also where that is read-only, as are views of bytes."""
    return from_dlpack(rows)


def keep_memory() -> None:
    """Let the C library keep up to 32 MiB that a computation gives back, instead of asking the system anew each time.

    Buffers of more than 128 KiB would else be mapped and cleared by the system for every batch: 20 % of an expert's time at 256 rows.
    Does nothing where the C library is not glibc.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    try:
        mallopt = library.mallopt
    except AttributeError:  # another C library
        return
    mmap_threshold, trim_threshold = -3, -1  # malloc.h
    mallopt(mmap_threshold, KEEP_BYTES)
    mallopt(trim_threshold, KEEP_BYTES)
