"""Networks: extractors, experts, gates and the mixture they form."""

from nmoe.moe.build import NodeModel, build, fresh_extractor, node_model, restore
from nmoe.moe.expert import Expert, LinearHead, StackedExperts
from nmoe.moe.extractor import CONSTANTS, ConvExtractor, Extractor, FixupResNet
from nmoe.moe.gate import Routing, TopKGate, all_uniform, importance_cv2, oracle, random_uniform, route
from nmoe.moe.layer import Mix, Mixture, MixtureOutput, combine, pick

__all__ = [
    "CONSTANTS",
    "ConvExtractor",
    "Expert",
    "Extractor",
    "FixupResNet",
    "LinearHead",
    "Mix",
    "Mixture",
    "MixtureOutput",
    "NodeModel",
    "Routing",
    "StackedExperts",
    "TopKGate",
    "all_uniform",
    "build",
    "combine",
    "fresh_extractor",
    "importance_cv2",
    "node_model",
    "oracle",
    "pick",
    "random_uniform",
    "restore",
    "route",
]
