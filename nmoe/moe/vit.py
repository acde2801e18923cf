"""Vision transformer: patches of an image as tokens, in front of the cut and behind it.

Source: Dosovitskiy et al., An image is worth 16x16 words, ICLR 2021, eq. (1) to (4).

| paper | here | meaning |
|---|---|---|
| P | patch_size | height and width of a patch, in pixels |
| N | | patches per image, (image_size / P)^2 |
| D | width | numbers per token |
| L | depth | blocks of the whole network |
| k | heads | attention heads of a block |
| x_class, E, E_pos | class_token, patches, positions | what the tokens are made of |

Cuts: a number of blocks, 0 to ``depth``, hands over all N + 1 tokens behind so many blocks, flat; ``cls`` the class token behind all blocks
and the last normalisation. Layer normalisation is kept: it acts within a token and couples no samples.

Departures: no dropout. The head is drawn (He), not zero as in the source: the experts of one mixture would else all start, and stay, alike.
With P = 16, D = 192, L = 12, 3 heads and 1000 classes it has the 5 717 416 parameters of the tiny model in use elsewhere.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from nmoe.moe.expert import Expert, LinearHead
from nmoe.moe.extractor import Extractor, check_cut

CLS = "cls"
WIDENING = 4  # width of a block's perceptron, in widths of a token; in all models of the source
EPSILON = 1e-6  # of layer normalisation, as in the source's code


def vit_cuts(depth: int) -> tuple[int | str, ...]:
    """Return where a transformer of so many blocks can be cut."""
    return (*range(depth + 1), CLS)


def vit_shape(cut: int | str, *, image_size: int, patch_size: int, width: int, depth: int) -> tuple[int, ...]:
    """Return the shape of one sample's features behind the cut: [token, width], or [width] of the class token.

    Args:
        cut: number of blocks before it, or ``cls``.
        image_size: height and width of an image, a multiple of ``patch_size``.
        patch_size: height and width of a patch.
        width: numbers per token.
        depth: blocks of the whole network.

    Raises:
        ValueError: when an argument is out of range.
    """
    if min(image_size, patch_size, width, depth) < 1:
        sizes = f"{image_size}, {patch_size}, {width} and {depth}"
        raise ValueError(f"image_size, patch_size, width and depth must be at least 1, got {sizes}")
    if image_size % patch_size:
        raise ValueError(f"image_size must be a multiple of patch_size, got {image_size} and {patch_size}")
    check_cut(cut, vit_cuts(depth))
    return (width,) if cut == CLS else ((image_size // patch_size) ** 2 + 1, width)


class VitBlock(nn.Module):
    """Self-attention and a perceptron, each behind a normalisation and added to its input, eq. (2) and (3).

    Args:
        width: numbers per token, a multiple of ``heads``.
        heads: attention heads.
        generator: draws the initial weights.

    Raises:
        ValueError: when the width is not a multiple of the heads.
    """

    def __init__(self, *, width: int, heads: int, generator: torch.Generator) -> None:
        if heads < 1 or width % heads:
            raise ValueError(f"heads must be at least 1 and divide width {width}, got {heads}")
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.query_key_value = _drawn(nn.Linear(width, 3 * width), generator)
        self.projection = _drawn(nn.Linear(width, width), generator)
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.widen = _drawn(nn.Linear(width, WIDENING * width), generator)
        self.narrow = _drawn(nn.Linear(WIDENING * width, width), generator)

    def forward(self, tokens: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token width"]:
        """Return the tokens behind the block."""
        tokens = tokens + self.projection(self._attend(self.norm1(tokens)))  # eq. (2)
        return tokens + self.narrow(functional.gelu(self.widen(self.norm2(tokens))))  # type: ignore[no-any-return]  # eq. (3)

    def _attend(self, tokens: Tensor) -> Tensor:
        parts = self.query_key_value(tokens).unflatten(2, (3, self.heads, -1))  # [batch, token, 3, head, width / heads]
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # [batch, head, token, width / heads] each
        attended = functional.scaled_dot_product_attention(query, key, value)
        return attended.transpose(1, 2).flatten(2)  # [batch, token, width]


class VisionTransformer(Extractor):
    """The network up to its cut.

    Args:
        in_channels: channels of an image, 1 or 3.
        image_size: height and width of an image, a multiple of ``patch_size``.
        patch_size: height and width of a patch, in pixels.
        width: numbers per token, a multiple of ``heads``.
        depth: blocks of the whole network.
        heads: attention heads of a block.
        cut: number of blocks before the cut, 0 to ``depth``, or ``cls``.
        generator: draws the initial weights.

    Raises:
        ValueError: when an argument is out of range.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        cut: int | str,
        generator: torch.Generator,
    ) -> None:
        shape = vit_shape(cut, image_size=image_size, patch_size=patch_size, width=width, depth=depth)
        super().__init__(in_channels=in_channels, feature_dim=math.prod(shape), image_size=image_size)
        self.patches = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)  # E: one linear map for every patch
        fan_in = in_channels * patch_size**2
        nn.init.normal_(self.patches.weight, std=fan_in**-0.5, generator=generator)
        assert self.patches.bias is not None
        nn.init.zeros_(self.patches.bias)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, (image_size // patch_size) ** 2 + 1, width))
        nn.init.normal_(self.positions, std=0.02, generator=generator)
        before = depth if cut == CLS else int(cut)
        self.blocks = _blocks(range(before), width=width, heads=heads, generator=generator)
        self.norm = nn.LayerNorm(width, eps=EPSILON) if cut == CLS else None

    def embed(self, pixels: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch dim"]:
        patches = self.patches(pixels).flatten(2).transpose(1, 2)  # [batch, patch, width]
        tokens = torch.cat((self.class_token.expand(len(pixels), -1, -1), patches), dim=1) + self.positions  # eq. (1)
        mixed: Tensor = self.blocks(tokens)  # [batch, token, width]
        features: Tensor = mixed.flatten(1) if self.norm is None else self.norm(mixed[:, 0])  # [batch, dim], eq. (4)
        return features


class VisionTransformerTail(Expert):
    """The network behind the cut: its other blocks, the last normalisation of the class token and a linear map.

    Args:
        image_size: height and width of an image, a multiple of ``patch_size``.
        patch_size: height and width of a patch, in pixels.
        width: numbers per token, a multiple of ``heads``.
        depth: blocks of the whole network.
        heads: attention heads of a block.
        cut: number of blocks before the cut, 0 to ``depth``, or ``cls``.
        num_classes: logits per sample.
        generator: draws the initial weights.

    Raises:
        ValueError: when an argument is out of range.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        cut: int | str,
        num_classes: int,
        generator: torch.Generator,
    ) -> None:
        shape = vit_shape(cut, image_size=image_size, patch_size=patch_size, width=width, depth=depth)
        super().__init__(feature_dim=math.prod(shape), num_classes=num_classes)
        self.shape = shape
        before = depth if cut == CLS else int(cut)
        self.blocks = _blocks(range(before, depth), width=width, heads=heads, generator=generator)
        self.norm = None if cut == CLS else nn.LayerNorm(width, eps=EPSILON)
        self.head = LinearHead(feature_dim=width, num_classes=num_classes, generator=generator)

    def forward(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch class"]:
        if self.norm is not None:
            tokens = self.blocks(features.unflatten(1, self.shape))  # [batch, token, width]
            features = self.norm(tokens[:, 0])  # [batch, width], eq. (4)
        return self.head(features)  # type: ignore[no-any-return]  # nn.Module calls are untyped


def _drawn(layer: nn.Linear, generator: torch.Generator) -> nn.Linear:
    """Draw a layer's weights (Glorot, as in the source's code)."""
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def _blocks(numbers: Iterable[int], *, width: int, heads: int, generator: torch.Generator) -> nn.Sequential:
    """Make some blocks, named by their number in the whole network."""
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    for number in numbers:
        blocks[str(number)] = VitBlock(width=width, heads=heads, generator=generator)
    return nn.Sequential(blocks)
