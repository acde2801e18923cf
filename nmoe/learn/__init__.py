"""Losses, local training, probes and privacy: what happens on one node."""

from nmoe.learn.local import Adam, LocalTraining, Optimiser, Sgd, cosine_scale
from nmoe.learn.privacy import GaussianMechanism, PrivacyBudget, correlation_sensitivity, spent_epsilon
from nmoe.learn.probe import linear_probe, nearest_neighbours
from nmoe.learn.spectral_contrastive import ProjectionHead, annealed_alpha, clip, correlation, spectral_contrastive_loss
from nmoe.learn.supervised import Classifier, accuracy, predict, train_supervised

__all__ = [
    "Adam",
    "Classifier",
    "GaussianMechanism",
    "LocalTraining",
    "Optimiser",
    "PrivacyBudget",
    "ProjectionHead",
    "Sgd",
    "accuracy",
    "annealed_alpha",
    "clip",
    "correlation",
    "correlation_sensitivity",
    "cosine_scale",
    "linear_probe",
    "nearest_neighbours",
    "predict",
    "spectral_contrastive_loss",
    "spent_epsilon",
    "train_supervised",
]
