"""Recipe of ``nmoe deliver run``: one call of a model whose weights are still on their way; and of ``nmoe deliver pack``."""

import inspect
import json
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from nmoe.core.errors import BadFile, NmoeError
from nmoe.core.files import write_bytes
from nmoe.deliver.architectures import model_builder
from nmoe.deliver.arriving import build_empty
from nmoe.deliver.delivery import Delivery, delivery_of
from nmoe.deliver.pack import pack
from nmoe.deliver.stream import stream_model

Call = tuple[tuple[Tensor, ...], dict[str, Tensor]]


def read_call(files: Sequence[str]) -> Call:
    """Read the inputs of a call.

    Args:
        files: ``FILE`` or ``NAME=FILE``. An ``.npy`` is one input, by position or name; an ``.npz`` or ``.safetensors`` has its own names.

    Returns:
        Positional and keyword inputs.

    Raises:
        ValueError: when a name comes twice, or a file is of another kind.
        BadFile: when a file cannot be read.
    """
    args: list[Tensor] = []
    keywords: dict[str, Tensor] = {}
    for given in files:
        name, equals, path = given.rpartition("=")
        read = _read_named(Path(path))
        if equals and set(read) != {""}:
            raise ValueError(f"{path} has names of its own, got {given}")
        if "" in read and not equals:
            args.append(read.pop(""))
        elif equals:
            read = {name: read[""]}
        if repeated := sorted(set(read) & set(keywords)):
            raise ValueError(f"input {repeated[0]} is given twice")
        keywords |= read
    return tuple(args), keywords


def named_outputs(output: Any) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors that a model put out, by name, and the names of what is none."""
    if isinstance(output, Tensor):
        return {"output": output}, []
    if isinstance(output, Mapping):
        found = {str(name): value for name, value in output.items()}
    elif isinstance(output, tuple | list):
        found = {f"output_{number}": value for number, value in enumerate(output)}
    else:
        raise ValueError(f"an output of tensors wanted, the model put out a {type(output).__name__}")
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    return tensors, [name for name in found if name not in tensors]


def write_outputs(path: Path, outputs: Mapping[str, Tensor]) -> None:
    """Write tensors as ``.npy`` (the first), ``.npz`` or ``.safetensors``.

    Raises:
        ValueError: when the file's name says another kind, or numpy lacks a dtype.
    """
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in outputs.items()}
    if path.suffix == ".safetensors":
        write_bytes(path, save({name: tensor.clone() for name, tensor in tensors.items()}))
        return
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(f"an output ending in .npy, .npz or .safetensors wanted, got {path}")
    if odd := sorted({str(tensor.dtype) for tensor in tensors.values() if tensor.dtype == torch.bfloat16}):
        raise ValueError(f"numpy has no {odd[0]}: write to a .safetensors file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    if path.suffix == ".npy":
        np.save(temporary, next(iter(arrays.values())))
    else:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]  # a mapping of arrays is what it takes
    temporary.replace(path)


def deliver_run(
    url: str,
    *,
    model: str,
    model_args: str,
    inputs: Sequence[str],
    output: Path | None,
    as_json: bool,
    say: Callable[[str], None],
    note: Callable[[str], None],
    watch: Callable[[Delivery], AbstractContextManager[object]],
    **options: Any,
) -> None:
    """Run a model once while it is being downloaded, write what it puts out, and print what happened.

    Args:
        url: of the weights.
        model: see ``model_builder``.
        model_args: JSON object of its arguments.
        inputs: see ``read_call``.
        output: see ``write_outputs``; None for none.
        as_json: print one JSON object instead of lines.
        say: prints a result.
        note: tells what a user should know, and times.
        watch: shows a delivery while it goes on.
        options: of ``stream_model``.

    Raises:
        ValueError, NmoeError: as ``stream_model`` does, when the model's own code fails, or inputs or outputs cannot be read or written.
    """
    if output is not None and output.suffix not in (".npy", ".npz", ".safetensors"):
        raise ValueError(f"an output ending in .npy, .npz or .safetensors wanted, got {output}")
    args, keywords = read_call(inputs)
    build = _evaluating(model_builder(model, _arguments(model_args)), args, keywords)
    began_s = time.perf_counter()
    example = keywords if not args else args if not keywords else None
    streamed = stream_model(build, url, example_inputs=example, notify=note, **options)
    delivery = delivery_of(streamed)
    try:
        with watch(delivery), torch.inference_mode():
            with _one_line("the model failed"):
                returned = streamed(*args, **keywords)
            tensors, others = named_outputs(returned)
            seconds = time.perf_counter() - began_s
            delivery.wait()
    finally:
        delivery.close()
    if others:
        note(f"not tensors, and not written: {', '.join(others)}")
    if output is not None:
        write_outputs(output, tensors)
    say(
        _as_json(tensors, seconds, delivery)
        if as_json
        else "\n".join(f"{name}: {_dtype(it)} {list(it.shape)}" for name, it in tensors.items())
    )
    progress = delivery.progress()
    note(
        f"{seconds:.2f} s; {progress.fetched_bytes / 1e6:.1f} MB of {progress.total_bytes / 1e6:.1f} MB fetched, the rest was in the cache"
    )


def _as_json(tensors: Mapping[str, Tensor], seconds: float, delivery: Delivery) -> str:
    shapes = {name: {"dtype": _dtype(tensor), "shape": list(tensor.shape)} for name, tensor in tensors.items()}
    progress = delivery.progress()
    facts = {"bytes": progress.total_bytes, "fetched_bytes": progress.fetched_bytes, "order": delivery.order}
    return json.dumps({"outputs": shapes, "seconds": seconds, **facts, "notices": delivery.notices})


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def deliver_pack(file: Path, *, model: str | None, model_args: str, inputs: Sequence[str], say: Callable[[str], None]) -> None:
    """Write the card of a model's file and say where.

    Raises:
        ValueError, NmoeError: as ``pack``, ``model_builder`` and ``read_call`` do.
    """
    args, keywords = read_call(inputs)
    if model is None:
        if args or keywords:
            raise ValueError("inputs without a model are of no use: give --model, too")
        say(f"card {pack(file)}, in the order of the file")
        return
    if args and keywords:
        raise ValueError("inputs all by position, or all by name, wanted")
    empty = build_empty(_evaluating(model_builder(model, _arguments(model_args)), args, keywords))
    with _one_line("the model failed", but=(NmoeError, ValueError, OSError)):
        card = pack(file, empty, args or keywords)
    say(f"card {card}, in the order of execution")


def _evaluating(builder: Callable[[], nn.Module], args: Sequence[Tensor], keywords: Mapping[str, Tensor]) -> Callable[[], nn.Module]:
    """Return a function that builds a model for evaluation, and checks that it can be called with these inputs."""

    def build() -> nn.Module:
        with _one_line("the model cannot be built"):
            model = builder()
        if isinstance(model, nn.Module):  # ``build_empty`` refuses anything else
            model.eval()
            try:
                inspect.signature(model.forward).bind(*args, **keywords)
            except TypeError as error:
                raise ValueError(f"the inputs are not those of the model: {error}") from error
        return model

    return build


@contextmanager
def _one_line(failed: str, *, but: tuple[type[Exception], ...] = (NmoeError,)) -> Iterator[None]:
    """Turn what a model's own code raises into one line, but for errors that are one."""
    try:
        yield
    except but:
        raise
    except Exception as error:
        raise ValueError(f"{failed}: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}") from error


def _arguments(text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text)
    except ValueError as error:
        raise ValueError(f"a model's arguments are a JSON object, got {text}") from error
    if not isinstance(arguments, dict):
        raise ValueError(f"a model's arguments are a JSON object, got {text}")
    return arguments


def _read_named(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file by name; a single array has the name ""."""
    if path.suffix not in (".npy", ".npz", ".safetensors"):
        raise ValueError(f"an input ending in .npy, .npz or .safetensors wanted, got {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = np.load(path, allow_pickle=False)
        arrays = {"": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, SafetensorError) as error:
        raise BadFile(f"cannot read {path}: {str(error).splitlines()[0] if str(error) else type(error).__name__}") from error


def find_own_modules() -> None:
    """Let ``package.module:function`` name modules in the current folder."""
    if "" not in sys.path:
        sys.path.insert(0, "")
