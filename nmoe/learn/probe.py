"""Probes: how good frozen features are, by a linear classifier and by nearest neighbours.

Source: FedSC's public code: probe by Adam, learning rate 3e-3, 200 epochs, batch 512, no augmentation; kNN by cosine similarity, k = 200,
votes weighted by exp(similarity / 0.1).

Departures: kNN takes at most a tenth of the labelled samples, since k = 200 would be a seventh of digits; the probe standardises its
features.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from nmoe.learn.local import Adam, LocalTraining
from nmoe.learn.supervised import accuracy, train_supervised


def linear_probe(
    features: Float[Tensor, "sample dim"],
    labels: Int[Tensor, " sample"],
    test_features: Float[Tensor, "test dim"],
    test_labels: Int[Tensor, " test"],
    *,
    num_classes: int,
    generator: torch.Generator,
    epochs: int = 200,
) -> float:
    """Train a linear classifier on frozen features and return its test accuracy."""
    mean, deviation = features.mean(dim=0), features.std(dim=0).clamp_min(1e-6)
    probe = nn.Linear(features.shape[1], num_classes)
    nn.init.normal_(probe.weight, std=0.01, generator=generator)
    nn.init.zeros_(probe.bias)
    training = LocalTraining(optimiser=Adam(lr=3e-3), batch_size=512, epochs=epochs)
    train_supervised(probe, (features - mean) / deviation, labels, training, generator=generator)
    with torch.inference_mode():
        return accuracy(probe((test_features - mean) / deviation), test_labels)


def nearest_neighbours(
    features: Float[Tensor, "sample dim"],
    labels: Int[Tensor, " sample"],
    test_features: Float[Tensor, "test dim"],
    test_labels: Int[Tensor, " test"],
    *,
    num_classes: int,
    k: int = 200,
    temperature: float = 0.1,
) -> float:
    """Return the test accuracy of a weighted vote of the nearest labelled samples.

    Args:
        features: labelled features.
        labels: their classes.
        test_features: features to classify.
        test_labels: their classes.
        num_classes: number of classes.
        k: neighbours asked, at most a tenth of the labelled samples.
        temperature: of the votes' weights.
    """
    k = max(1, min(k, len(labels) // 10))
    similarity = functional.normalize(test_features, dim=1) @ functional.normalize(features, dim=1).T
    nearest = similarity.topk(k, dim=1)
    votes = torch.zeros(len(test_labels), num_classes)
    votes.scatter_add_(1, labels[nearest.indices], (nearest.values / temperature).exp())
    return accuracy(votes, test_labels)
