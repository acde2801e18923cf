"""Streaming: run a model while its weights are still being downloaded, from an ordinary safetensors file on an ordinary HTTP server.

Source: G. Qu, T. Li, Q. Chen, X. Chen, S. Zhou, SLIDE (arXiv 2512.20946): layer l starts when it is there and layer l-1 has ended,

    t_l = max( sum_{l' <= l} tau_l', t_{l-1} ) + T_l

| paper | here | unit |
|---|---|---|
| tau_l | time between arrivals, ``Delivery.arrived_s`` | s |
| T_l | what a model computes between touching one group of weights and the next, ``LayerGroup.flops`` | s |
| t_l | ``Delivery.needed_s`` of the group after it | s |

Departures: the paper's system was not found; all of this is ours. A layer is not a unit here: a module waits for single tensors, at the
moment its code touches them (``nmoe.deliver.arriving``), so that any module works unchanged and groups are as fine as the model allows.
The model is built once, with its parameters on the meta device and everything else real, rather than wholly on the meta device: buffers
that are not in the file have their values then. Tensors are pages of the file in the cache, and need no memory of their own; the cache
keeps them aligned as ``load_state_dict`` would, since matrix products differ in their last bits with the alignment of weights. The order
is traced in a thread beside the download, which begins in the order of the module tree, and whatever is waited for goes first.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from nmoe.deliver.architectures import saved_names
from nmoe.deliver.arriving import Arrive, await_weights, build_empty, drop_hook, settle, weight_slots
from nmoe.deliver.cache import default_cache
from nmoe.deliver.delivery import Delivery
from nmoe.deliver.execution import Inputs, call_arguments, meta_arguments, trace_touches, traceable_copy
from nmoe.deliver.fetch import Fetcher
from nmoe.deliver.http import Pace
from nmoe.deliver.intake import CardGiven, ask_card, kept_files, mapped_places, take_in, whole_files
from nmoe.deliver.layout import Layout, TensorPlace
from nmoe.deliver.matching import match_tensors
from nmoe.deliver.remote import RemoteModel, check_url, file_name, is_index, open_remote

STALL_TIMEOUT_S, DEADLINE_S = 10.0, 60.0
CONNECTIONS = 2  # so that one is asked for the next run while the other is sent


def stream_model(
    build: Callable[[], nn.Module],
    url: str,
    *,
    example_inputs: Inputs | None = None,
    card: CardGiven = None,
    cache_dir: Path | None = None,
    sources: Sequence[str] = (),
    max_bytes_per_s: float | None = None,
    stall_timeout_s: float = STALL_TIMEOUT_S,
    deadline_s: float = DEADLINE_S,
    sha256: str | None = None,
    headers: Mapping[str, str] | None = None,
    connections: int = CONNECTIONS,
    revalidate: bool = True,
    notify: Callable[[str], None] | None = None,
) -> nn.Module:
    """Return a model that computes while its weights arrive; its results are those of the fully loaded model, bit for bit.

    A weight that is touched before it is there is waited for, and put first; ``state_dict()``, ``to()`` and the like wait for all they
    touch. When the download fails, the call that waits raises the reason. ``delivery_of(model)`` tells how far it is; deleting it, and all
    modules of it, ends the download, and what has arrived is kept for the next time.

    Args:
        build: makes the model, without choosing a device; its parameters take no memory. Its dtypes give way to the file's.
        url: of a safetensors file, or of the index of its shards (``*.safetensors.index.json``).
        example_inputs: of the kind and size of the calls to come, from which the order of execution is traced; if neither they nor a card
            are given it is traced from the first call.
        card: the file's card, or where it lies; by default it is looked for beside the file; False for not looking.
        cache_dir: where files are kept; see ``default_cache``.
        sources: more addresses of the same file, from which it is fetched at the same time.
        max_bytes_per_s: bound of the download, above 0.
        stall_timeout_s: a transfer that brings nothing for so long is tried again.
        deadline_s: when nothing new has come for so long it is given up; also how long to wait for another process that fetches this file.
        sha256: of a single file, if known. The last tensor is then withheld until the whole file has been checked.
        headers: sent with every request.
        connections: to each source.
        revalidate: ask the server whether a file in the cache is still the one it has; False for using it without any network.
        notify: told at once what ``Delivery.notices`` collects.

    Raises:
        ValueError: when an argument cannot be, or model and file do not fit; nothing has been downloaded but headers then.
        NmoeError: when the file cannot be reached or is not what it should be.
    """
    asked, folder = _checked(url, stall_timeout_s, deadline_s, connections, sha256), cache_dir or default_cache()
    wanted = _Wanted(url=url, sha256=asked, folder=folder, card=card, example_inputs=example_inputs, patience_s=deadline_s)
    urls, pace, delivery = [check_url(each) for each in (url, *sources)], Pace(max_bytes_per_s), Delivery(notify=notify)
    model = build_empty(build)
    if not revalidate:
        return _fill(model, url, delivery, kept_files(folder, url, asked))
    remote = open_remote(urls, headers=headers or {}, stall_timeout_s=stall_timeout_s, deadline_s=deadline_s, notice=delivery.notice)
    try:
        fetcher = partial(Fetcher, pace=pace, connections=connections, deadline_s=deadline_s, notice=delivery.notice)
        return _stream(model, wanted, remote, delivery, fetcher)
    except BaseException:
        remote.close()
        raise


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What the caller of ``stream_model`` wants; see there."""

    url: str
    sha256: str
    folder: Path
    card: CardGiven
    example_inputs: Inputs | None
    patience_s: float


def _stream(model: nn.Module, wanted: _Wanted, remote: RemoteModel, delivery: Delivery, fetch: Callable[..., Fetcher]) -> nn.Module:
    """Let a model wait for its weights, and begin to fetch them; or fill it at once from the cache."""
    names = _matched(model, remote.places, wanted.url)
    whole = whole_files(remote, wanted.folder, wanted.sha256)
    if whole is None:
        told = ask_card(wanted.card, remote, wanted.url, wanted.sha256, delivery)
        if told.order:
            delivery.order = "card"
        watcher = _CallWatcher(None if told.order else _twin(model, delivery), names, delivery)
        intake = take_in(remote, told, wanted.folder, wanted.url, patience_s=wanted.patience_s)
        if not intake.files:  # another process has brought them meanwhile
            whole = whole_files(remote, wanted.folder, wanted.sha256)
    if whole is not None:
        remote.close()
        return _fill(model, wanted.url, delivery, whole)
    fetcher = fetch(intake.files, intake.suppliers, hashes=told.tensor_sha256)
    fetcher.reorder(told.order or tuple(dict.fromkeys(names.values())))
    delivery.attach(intake.places, intake.paths)
    delivery.follow(fetcher, {place.name for file in intake.files for place in file.layout.tensors})
    arrive = watcher.arrive = partial(delivery.take)
    await_weights(weight_slots(model), names, arrive)
    model.register_forward_pre_hook(watcher, with_kwargs=True)
    vars(model)["delivery"] = delivery
    weakref.finalize(arrive, delivery.stop)  # once neither the model nor any of its modules is left
    fetcher.start(intake.cached)
    if wanted.example_inputs is not None:
        watcher.trace(*call_arguments(wanted.example_inputs))
    return model


def _matched(model: nn.Module, places: Sequence[TensorPlace], url: str) -> dict[str, str]:
    slots = weight_slots(model)
    return match_tensors(slots, places, name=file_name(url), saved=saved_names(model, {slot.name: slot.tensor for slot in slots}))


def _twin(model: nn.Module, delivery: Delivery) -> nn.Module | None:
    """Return a copy of a model for tracing, or None where it cannot be copied."""
    try:
        return traceable_copy(model)
    except Exception as error:  # noqa: BLE001  # a model's own code may raise anything; the order only saves time
        _untraced(delivery, error)
        return None


def _untraced(delivery: Delivery, error: Exception) -> None:
    delivery.notice(f"the order of execution could not be traced: {type(error).__name__}")


class _CallWatcher:
    """Runs before each call of a model: has the order traced from the first if it is not known, and ends the waiting once all is there.

    Args:
        twin: copy of the model to trace; None when that is not needed, or cannot be.
        names: the file's tensor for each of the model's.
        delivery: to be told the order.

    Attributes:
        arrive: what the model's modules wait with, which must live as long as they do.
    """

    arrive: Arrive | None = None

    def __init__(self, twin: nn.Module | None, names: Mapping[str, str], delivery: Delivery) -> None:
        self._twin, self._names, self._delivery = twin, names, delivery

    def __reduce__(self) -> tuple[Any, ...]:
        return _CallWatcher, (None, {}, self._delivery)  # a pickled model has its weights

    def __call__(self, model: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if self._delivery.finished:
            settle(model)
            drop_hook(model, self)
            self._delivery.forget()
        else:
            self.trace(args, keywords)

    def trace(self, args: Sequence[Any], keywords: Mapping[str, Any]) -> None:
        """Trace a call in a thread, once, while weights come in the order of the module tree.

        Torch imports a compiler for its first operation without values, which takes seconds; nothing need wait for that.
        """
        twin, self._twin = self._twin, None
        if twin is None:
            return
        try:
            args, keywords = meta_arguments(args, keywords)  # now, since the call that follows may change them
        except Exception as error:  # noqa: BLE001  # as in _twin
            _untraced(self._delivery, error)
            return

        def run() -> None:
            try:
                traced = [self._names[name] for name, _ in trace_touches(twin, args, keywords) if name]
            except Exception as error:  # noqa: BLE001  # as in _twin
                _untraced(self._delivery, error)
            else:
                self._delivery.reorder(traced)

        self._delivery.beside(run)


def _checked(url: str, stall_timeout_s: float, deadline_s: float, connections: int, sha256: str | None) -> str:
    """Check the arguments that nobody else does; return the hash, empty for none."""
    for name, value in {"stall_timeout_s": stall_timeout_s, "deadline_s": deadline_s, "connections": connections}.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be above 0, got {value}")
    if sha256 is None:
        return ""
    if is_index(url) or len(sha256) != 64 or set(sha256.lower()) - set("0123456789abcdef"):
        raise ValueError(f"the SHA-256 of a single file wanted, 64 hexadecimal digits, got {sha256} for {file_name(url)}")
    return sha256.lower()


def _fill(model: nn.Module, url: str, delivery: Delivery, files: Sequence[tuple[Path, Layout]]) -> nn.Module:
    """Give a model all its weights from whole files."""
    slots = weight_slots(model)
    names = _matched(model, [place for _, layout in files for place in layout.tensors], url)
    delivery.attach(mapped_places(files), [path for path, _ in files])
    await_weights(slots, names, delivery.take)
    settle(model)
    delivery.forget()
    vars(model)["delivery"] = delivery
    return model
