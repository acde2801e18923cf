"""One measurement, in a process of its own so that nothing of another is still in memory. ``python -m ... JOB CASE FOLDER URL TURNS``.

Prints one JSON object. All jobs compute on one thread.
"""

import json
import resource
import shutil
import sys
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from nmoe.deliver.arriving import await_weights, build_empty, weight_slots
from nmoe.deliver.delivery import delivery_of
from nmoe.deliver.pack import pack
from nmoe.deliver.stream import stream_model
from nmoe.recipes.bench_deliver.cases import CASES, DeliverCase, write_weights


def load_plainly(builder: Callable[[], nn.Module], path: Path) -> nn.Module:
    """Return a model with its weights loaded as anybody would: safetensors, then ``load_state_dict``."""
    model = build_empty(builder)
    model.load_state_dict(load_file(path), strict=False, assign=True)  # not strict: a tied weight is in the file once
    tied = {id(slot.tensor): slot for slot in weight_slots(model) if slot.tensor.is_meta}
    if tied:
        model.tie_weights()  # type: ignore[operator]  # transformers' models have it
    return model


def measure_layers(case: DeliverCase, folder: Path) -> dict[str, Any]:
    """Time what is computed between the first touches of weights, in the first call of a process, as a streamed call is one."""
    inputs = case.inputs(case.batch)
    model = load_plainly(case.builder(folder), folder / case.name / "model.safetensors")
    touched_s: dict[str, float] = {}

    def note(name: str, tensor: Tensor) -> Tensor:
        touched_s.setdefault(name, time.perf_counter() - began_s)
        return tensor

    slots = weight_slots(model)
    first: dict[int, str] = {}
    await_weights(slots, {slot.name: first.setdefault(id(slot.tensor), slot.name) for slot in slots}, note)
    began_s = time.perf_counter()
    with torch.inference_mode():
        model(**inputs)
    compute_s = time.perf_counter() - began_s
    sizes = {slot.name: slot.tensor.nbytes for slot in slots}
    return {"compute_s": compute_s, "touched_s": {**touched_s, "": compute_s}, "bytes": {name: sizes[name] for name in touched_s}}


def measure_streamed(case: DeliverCase, folder: Path, url: str, *, card: bool) -> dict[str, Any]:
    """Time one call of a model that is not there yet, from nothing to its output."""
    cache, inputs, builder = folder / "cache", case.inputs(case.batch), case.builder(folder)
    shutil.rmtree(cache, ignore_errors=True)
    began_s = time.perf_counter()
    options: dict[str, Any] = {} if card else {"card": False, "example_inputs": inputs}
    model = stream_model(builder, f"{url}/{case.name}/model.safetensors", cache_dir=cache, **options)
    opened_s = time.perf_counter() - began_s
    with torch.inference_mode():
        model(**inputs)
    total_s = time.perf_counter() - began_s
    delivery = delivery_of(model)
    downloaded_s = opened_s + max(delivery.arrived_s.values())
    delivery.close()
    return {"total_s": total_s, "opened_s": opened_s, "downloaded_s": downloaded_s, "waited_s": sum(delivery.waited_s.values())}


def measure_downloaded(case: DeliverCase, folder: Path, url: str) -> dict[str, Any]:
    """Time one call of a model that is downloaded first, by one plain request."""
    inputs, builder, path = case.inputs(case.batch), case.builder(folder), folder / "downloaded.safetensors"
    began_s = time.perf_counter()
    with urllib.request.urlopen(f"{url}/{case.name}/model.safetensors") as response, path.open("wb") as file:  # noqa: S310  # ours
        shutil.copyfileobj(response, file, 1 << 20)
    downloaded_s = time.perf_counter() - began_s
    model = load_plainly(builder, path)
    with torch.inference_mode():
        model(**inputs)
    total_s = time.perf_counter() - began_s
    path.unlink()
    return {"total_s": total_s, "downloaded_s": downloaded_s}


def measure_local(case: DeliverCase, folder: Path, url: str, turns: int) -> dict[str, Any]:
    """Time loading and one call when the file is here, in turns: plainly, and from the cache with and without asking the server."""
    address, inputs = f"{url}/{case.name}/model.safetensors", case.inputs(case.batch)
    builder, cache = case.builder(folder), folder / "cache"
    model = stream_model(builder, address, cache_dir=cache)
    delivery_of(model).wait()  # while the model is there: without it nobody wants the rest
    ways: dict[str, Callable[[], nn.Module]] = {
        "plain": lambda: load_plainly(builder, folder / case.name / "model.safetensors"),
        "cache": lambda: stream_model(builder, address, cache_dir=cache),
        "offline": lambda: stream_model(builder, address, cache_dir=cache, revalidate=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    loading: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, load in ways.items():
            began_s = time.perf_counter()
            model = load()
            loaded_s = time.perf_counter() - began_s
            with torch.inference_mode():
                model(**inputs)
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - began_s)
                loading[name].append(loaded_s)
            del model
    return {"seconds": seconds, "loading_s": loading}


def measure_memory(case: DeliverCase, folder: Path, url: str, way: str) -> dict[str, Any]:
    """Return the peak of resident memory during one call with one sample.

    ``empty`` gives every weight one shared zero in place of its values: what the process takes without the model. ``plain`` loads it,
    ``card`` streams it in a card's order, ``traced`` streams it and traces the order.
    """
    address, inputs, builder = f"{url}/{case.name}/model.safetensors", case.inputs(1), case.builder(folder)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    if way == "empty":
        model = build_empty(builder)
        for slot in weight_slots(model):
            zero = torch.zeros((), dtype=slot.tensor.dtype).expand(slot.tensor.shape)
            vars(slot.module)[slot.container][slot.key] = nn.Parameter(zero, False) if isinstance(slot.tensor, nn.Parameter) else zero
    elif way == "plain":
        model = load_plainly(builder, folder / case.name / "model.safetensors")
    else:
        options: dict[str, Any] = {} if way == "card" else {"card": False, "example_inputs": inputs}
        model = stream_model(builder, address, cache_dir=folder / "cache", **options)
    with torch.inference_mode():
        model(**inputs)
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak_bytes": peak_bytes, "model_bytes": sum({id(slot.tensor): slot.tensor.nbytes for slot in weight_slots(model)}.values())}


def main() -> None:
    """Do the job that the command line names."""
    torch.set_num_threads(1)
    job, name, folder, url, turns = sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4], int(sys.argv[5])
    case = CASES[name]
    jobs: dict[str, Callable[[], Any]] = {
        "write": lambda: {"bytes": write_weights(case, folder).stat().st_size},
        "layers": lambda: measure_layers(case, folder),
        "pack": lambda: {"card": str(pack(folder / name / "model.safetensors", build_empty(case.builder(folder)), case.inputs(2)))},
        "card": lambda: measure_streamed(case, folder, url, card=True),
        "traced": lambda: measure_streamed(case, folder, url, card=False),
        "downloaded": lambda: measure_downloaded(case, folder, url),
        "local": lambda: measure_local(case, folder, url, turns),
        **{f"memory {way}": partial(measure_memory, case, folder, url, way) for way in ("empty", "plain", "card", "traced")},
    }
    print(json.dumps(jobs[job]()))


if __name__ == "__main__":
    main()
