"""What is measured: three architectures with random weights, and how large a call of each is."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nmoe.core.seeds import derive_seed, torch_generator
from nmoe.deliver.architectures import model_builder
from nmoe.deliver.arriving import weight_slots


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverCase:
    """A model and a call of it.

    Attributes:
        name: for the table.
        config: Hugging Face's configuration; what it does not name is that library's default.
        batch: samples of the call.
        tokens: of each sample for a decoder; None for images of 224 x 224.
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    batch: int
    tokens: int | None = None

    def inputs(self, batch: int) -> dict[str, Tensor]:
        """Return inputs of a call."""
        generator = torch_generator(0, "bench", self.name)
        if self.tokens is None:
            return {"pixel_values": torch.rand((batch, 3, 224, 224), generator=generator)}
        return {"input_ids": torch.randint(self.config["vocab_size"], (batch, self.tokens), generator=generator)}

    def builder(self, folder: Path) -> Callable[[], nn.Module]:
        """Return a function that builds the model, from a configuration that is written to a folder."""
        path = folder / self.name / "config.json"
        if not path.exists():
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps(self.config))
        make = model_builder(str(path), {})
        return lambda: make().eval()


CASES = {
    case.name: case
    for case in (
        DeliverCase(name="ResNet-50", config={"model_type": "resnet", "architectures": ["ResNetForImageClassification"]}, batch=24),
        DeliverCase(name="ViT-B-16", config={"model_type": "vit", "architectures": ["ViTForImageClassification"]}, batch=12),
        DeliverCase(
            name="decoder-60M",
            config={
                "model_type": "llama",
                "architectures": ["LlamaForCausalLM"],
                "hidden_size": 512,
                "intermediate_size": 1408,
                "num_hidden_layers": 16,
                "num_attention_heads": 8,
                "num_key_value_heads": 8,
                "vocab_size": 16384,
                "tie_word_embeddings": True,
                "use_cache": False,
            },
            batch=16,
            tokens=128,
        ),
    )
}


def write_weights(case: DeliverCase, folder: Path) -> Path:
    """Write a file of random weights for a model, a tied weight once, as Hugging Face's library does."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(0, "weights", case.name))
        model = case.builder(folder)()
    tensors: dict[int, tuple[str, Tensor]] = {}
    for slot in weight_slots(model):
        tensors.setdefault(id(slot.tensor), (slot.name, slot.tensor.detach().contiguous()))
    path = folder / case.name / "model.safetensors"
    save_file(dict(tensors.values()), path)
    return path
