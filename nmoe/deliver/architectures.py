"""Architectures: from what a user calls a model to a function that builds it. The one door to transformers, which is optional.

A model is ``package.module:function`` of the user's own, or Hugging Face's ``config.json``, or a folder with one. Code that comes with a
checkpoint is never run: only architectures that transformers itself has.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nmoe.core.errors import BadFile, EngineError
from nmoe.core.files import read_json


def model_builder(model: str, arguments: Mapping[str, Any]) -> Callable[[], nn.Module]:
    """Return a function that builds a model, for ``stream_model`` or ``build_empty``.

    Args:
        model: ``package.module:function``, a ``config.json``, or a folder with one.
        arguments: keyword arguments of the function, or fields of the configuration to be changed.

    Raises:
        ValueError: when the name is neither, there is no such function, or it does not take these arguments.
        BadFile: when the configuration cannot be read or is of no architecture that transformers has.
        EngineError: when transformers is needed and not installed.
    """
    path = Path(model)
    if (model and path.is_dir()) or path.suffix == ".json":
        return _from_config(path / "config.json" if path.is_dir() else path, arguments)
    module_name, colon, name = model.partition(":")
    if not colon or not name or not all(part.isidentifier() for part in (*module_name.split("."), name)):
        raise ValueError(f"a model is package.module:function, a config.json or a folder with one, got {model}")
    try:
        make = getattr(importlib.import_module(module_name), name)
    except ModuleNotFoundError as error:
        raise ValueError(f"cannot import {module_name}: {error}") from error
    except AttributeError as error:
        raise ValueError(f"{module_name} has no {name}") from error
    if not callable(make):
        raise ValueError(f"{model} is not a function that makes a model, it is a {type(make).__name__}")
    _check_arguments(model, make, arguments)
    return lambda: make(**arguments)


def saved_names(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the names under which transformers saves tensors that it only renames; none where the model is not one of its.

    Args:
        model: may be empty.
        tensors: of the model, by their names in it; placeholders will do.
    """
    modeling = sys.modules.get("transformers.modeling_utils")  # where it is not, there is no such model
    if modeling is None or not isinstance(model, modeling.PreTrainedModel):
        return {}
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:
        return {}  # transformers before 5, which saves them as they are called
    try:
        saved = revert_weight_conversion(model, dict(tensors))
    except Exception:  # noqa: BLE001  # it merges and splits some models' tensors, which it may not do without values
        return {}
    own = {id(tensor): name for name, tensor in tensors.items()}
    return {own[id(tensor)]: name for name, tensor in saved.items() if id(tensor) in own and own[id(tensor)] != name}


def _check_arguments(model: str, make: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):
        return  # a function of C does not say what it takes
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ValueError(f"{model} does not take these arguments: {error}") from error


def _from_config(path: Path, changes: Mapping[str, Any]) -> Callable[[], nn.Module]:
    """Return a function that builds the model that a configuration describes."""
    config = read_json(path)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise BadFile(f"{path} is not a model's configuration: it has no model_type")
    try:
        import transformers
    except ImportError as error:
        raise EngineError(f"{path} wants transformers, which is not installed: pip install 'nmoe[models]'") from error
    if config["model_type"] not in transformers.CONFIG_MAPPING:
        raise BadFile(
            f"{path}: transformers {transformers.__version__} has no model_type {config['model_type']}; code from elsewhere is not run"
        )
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise BadFile(f"{path} does not name its class in architectures")
    try:
        described = transformers.CONFIG_MAPPING[config["model_type"]].from_dict({**config, **changes})
        architecture = getattr(transformers, names[0])
    except Exception as error:  # every configuration checks itself in its own way; its words are the reason
        raise BadFile(f"{path} does not describe a model of transformers {transformers.__version__}: {error}") from error
    if not isinstance(architecture, type) or not issubclass(architecture, transformers.PreTrainedModel):
        raise BadFile(f"{path}: {names[0]} is not a model of transformers")
    return lambda: architecture(described)
