"""Data: labelled images, how they are dealt to nodes, and the views contrastive learning draws of them."""

from nmoe.data.base import ImageDataset, TrainTest
from nmoe.data.catalog import NAMES, load
from nmoe.data.cifar import load_cifar10, load_cifar100
from nmoe.data.digits import load_digits
from nmoe.data.fashion_mnist import load_fashion_mnist
from nmoe.data.npz import load_images, load_npz
from nmoe.data.partition import Dirichlet, Iid, Partition, QuantitySkew, Shards, class_histogram
from nmoe.data.views import ColourViews, DigitViews, FashionViews, Views, to_unit, views_for

__all__ = [
    "NAMES",
    "ColourViews",
    "DigitViews",
    "Dirichlet",
    "FashionViews",
    "Iid",
    "ImageDataset",
    "Partition",
    "QuantitySkew",
    "Shards",
    "TrainTest",
    "Views",
    "class_histogram",
    "load",
    "load_cifar10",
    "load_cifar100",
    "load_digits",
    "load_fashion_mnist",
    "load_images",
    "load_npz",
    "to_unit",
    "views_for",
]
