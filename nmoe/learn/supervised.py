"""Supervised training: a classifier made of an extractor and a head, by cross entropy."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from nmoe.learn.local import LocalTraining


class Classifier(nn.Module):
    """An extractor and a head trained together.

    Args:
        extractor: images to features.
        head: features to logits.
    """

    def __init__(self, *, extractor: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.extractor = extractor
        self.head = head

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch class"]:
        """Return the logits of images in [0, 1]."""
        return self.head(self.extractor(images))  # type: ignore[no-any-return]  # nn.Module calls are untyped


def train_supervised(
    model: nn.Module,
    inputs: Float[Tensor, "sample ..."],
    labels: Int[Tensor, " sample"],
    training: LocalTraining,
    *,
    generator: torch.Generator,
    scale: float = 1.0,
) -> float:
    """Train a model in place by cross entropy on its logits; returns the mean loss."""
    model.train()
    return training.run(
        model,
        len(labels),
        lambda batch: functional.cross_entropy(model(inputs[batch]), labels[batch]),
        generator=generator,
        scale=scale,
    )


@torch.inference_mode()
def predict(model: nn.Module, inputs: Float[Tensor, "sample ..."], *, batch_size: int = 512) -> Float[Tensor, "sample ..."]:
    """Run a model over all inputs in evaluation mode, batch by batch; returns its outputs."""
    model.eval()
    return torch.cat([model(batch) for batch in inputs.split(batch_size)])


def accuracy(scores: Float[Tensor, "sample class"], labels: Int[Tensor, " sample"]) -> float:
    """Return the share of samples whose highest score is at the true label."""
    return float((scores.argmax(dim=1) == labels).double().mean())
