"""A folder of small models."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nmoe.core.seeds import torch_generator
from nmoe.deliver.pack import pack


def write_stack(folder: Path, name: str, *, layers: int, width: int) -> Path:
    """Write a stack of square layers and its card."""
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
    generator = torch_generator(0, name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    path = folder / f"{name}.safetensors"
    save_file(dict(model.state_dict()), path)
    pack(path, model, torch.zeros(1, width))
    return path


@pytest.fixture
def write() -> Callable[..., Path]:
    """Writes a model and its card."""
    return write_stack


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    write_stack(folder, "small", layers=6, width=64)
    return folder
