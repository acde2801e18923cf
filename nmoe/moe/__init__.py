"""Networks: extractors, experts, gates and the mixture they form."""

from nmoe.moe.backbone import BACKBONES, cuts, split
from nmoe.moe.balance import expert_load, gate_entropy, importance, importance_cv2
from nmoe.moe.build import NodeModel, build, fresh_extractor, node_model, restore
from nmoe.moe.channel_gate import ChannelAwareGate, SnrGate
from nmoe.moe.expert import Expert, Experts, LinearHead, MlpExpert, SeparateExperts, StackedExperts, together
from nmoe.moe.extractor import CONSTANTS, ConvExtractor, Extractor
from nmoe.moe.fixup import FixupResNet, FixupTail
from nmoe.moe.gate import Gate, Routing, TopKGate, all_uniform, oracle, random_uniform, route
from nmoe.moe.layer import Mix, Mixture, MixtureOutput, combine, pick
from nmoe.moe.lenet import LeNet, LeNetTail
from nmoe.moe.vit import VisionTransformer, VisionTransformerTail

__all__ = [
    "BACKBONES",
    "CONSTANTS",
    "ChannelAwareGate",
    "ConvExtractor",
    "Expert",
    "Experts",
    "Extractor",
    "FixupResNet",
    "FixupTail",
    "Gate",
    "LeNet",
    "LeNetTail",
    "LinearHead",
    "Mix",
    "Mixture",
    "MixtureOutput",
    "MlpExpert",
    "NodeModel",
    "Routing",
    "SeparateExperts",
    "SnrGate",
    "StackedExperts",
    "TopKGate",
    "VisionTransformer",
    "VisionTransformerTail",
    "all_uniform",
    "build",
    "combine",
    "cuts",
    "expert_load",
    "fresh_extractor",
    "gate_entropy",
    "importance",
    "importance_cv2",
    "node_model",
    "oracle",
    "pick",
    "random_uniform",
    "restore",
    "route",
    "split",
    "together",
]
