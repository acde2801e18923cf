"""Model: what one node computes. Wraps the modules of its bundle; images come as bytes, features leave as float32."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from nmoe.core.bundle import Bundle
from nmoe.moe.build import NodeModel, node_model
from nmoe.moe.gate import Routing, route

CHUNK_ROWS = 256  # images in the extractor at once: a large batch must not take a large memory


class NodeCompute:
    """Extractor, gate and own expert of one node, for one compute thread.

    Args:
        bundle: a verified bundle.

    Raises:
        BundleError: when its parts do not fit its card.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.card = bundle.card
        self.model: NodeModel = node_model(bundle)
        self.feature_dim = self.model.extractor.feature_dim

    @torch.inference_mode()
    def route(
        self, images: UInt8[Tensor, "batch height width channel"], *, mask: Sequence[bool], k: int
    ) -> tuple[Float[Tensor, "batch dim"], Routing]:
        """Return the features of images (0 to 255) and the experts chosen for them among those reachable."""
        pixels = images.permute(0, 3, 1, 2).to(torch.float32) / 255  # [batch, channel, height, width]
        features = torch.cat([self.model.extractor(chunk) for chunk in torch.split(pixels, CHUNK_ROWS)])  # [batch, dim]
        return features, route(self.model.gate.scores(features), k=k, mask=torch.tensor(mask))

    @torch.inference_mode()
    def expert(self, features: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows classes"]:
        """Return the own expert's logits."""
        logits: Tensor = self.model.expert(features)
        return logits
