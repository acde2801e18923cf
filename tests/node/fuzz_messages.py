"""Fuzzes ``decode`` with atheris: ``python tests/node/fuzz_messages.py 60`` for a minute, or ``--runs 5000``. Also holds sample messages.

Whatever comes in, ``decode`` raises MessageError with one line and a known fault, or returns a record that can be sent on and read again.
"""

import argparse
import inspect
import subprocess
import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from nmoe.core.errors import Fault, MessageError
from nmoe.node.messages import (
    CardReply,
    CardRequest,
    ExpertCard,
    ExpertReply,
    ExpertRequest,
    ExpertRows,
    GradientReply,
    GradientRequest,
    InferReply,
    InferRequest,
    Message,
    PingReply,
    PingRequest,
    RefusalCode,
    StatusReply,
    StatusRequest,
    TensorFormat,
    decode,
    encode,
    refusal,
)
from nmoe.node.messages.body import Body
from nmoe.node.messages.formats import LARGEST_CODE
from nmoe.node.view import ExpertView, LinkView, NodeView, RefusedView

FAULTS = frozenset(get_args(Fault))
MAX_BYTES = 2048  # of a fuzzed message


def view() -> NodeView:
    """Return a view with something in every field."""
    return NodeView(
        node="node-0", mesh="m", endpoint="tcp/127.0.0.1:1", http="", version="0.1", bundle="ab", ready=True, draining=False, uptime_s=1.5,
        k=2, num_classes=10, classes=(1, 2), image_shape=(8, 8, 1), answered=1, degraded=0, refused={"busy": 2}, in_progress=0,
        requests_per_s=0.5, p50_s=None, p99_s=0.1, rows_served=3, queue_rows=0, malformed={"cut off": 1}, log_errors=0,
        bytes_out={"int8": 7}, links=(LinkView(peer="node-1", state="up", rtt_s=0.01, failed={"late": 1}),),
        experts=(ExpertView(expert="node-1", nodes=("node-1",), rows_chosen=3, rows_answered=2),),
        refusals=(RefusedView(who="node-9", reason="another extractor", count=1, last_s=2.0),),
    )  # fmt: skip


def card(**changes: object) -> ExpertCard:
    """Return a card, with changes."""
    values: dict[str, object] = {
        "node": "node-1", "version": "abcd", "experts": ("node-1", "spare"), "classes": (3, 1), "class_list": "digits", "num_classes": 10,
        "draining": False, "in_dim": 4, "out_dim": 10, "formats": tuple(TensorFormat), "max_rows": 256, "rows_per_s": 1e4,
        "gradients": True,
    }  # fmt: skip
    return ExpertCard(**(values | changes))


def request(form: TensorFormat, *, rows: int = 3, dim: int = 5) -> ExpertRequest:
    """Return a request for two experts, one of them for all rows."""
    features = np.random.default_rng(0).standard_normal((rows, dim)).astype(np.float32)
    some = np.arange(0, rows, 2, dtype=np.int32)
    experts = (ExpertRows(expert="node-1", version="abcd"), ExpertRows(expert="node-2", rows=some))
    return ExpertRequest(request=7, origin="node-0", deadline_s=0.25, format=form, experts=experts, features=features, trace="00-ab")


def samples() -> list[Message]:
    """Return at least one message of every kind and format."""
    outputs = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
    chance = torch.Generator().manual_seed(2)
    shape = (2, 4, 4, 1)
    messages: list[Message] = []
    for form in TensorFormat:
        messages.append(request(form))
        messages.append(ExpertReply(request=7, format=form, outputs=outputs, wait_s=0.01, compute_s=0.001, queue_rows=3, draining=True))
    return [
        *messages,
        GradientRequest(forward=request(TensorFormat.FLOAT32), gradients=outputs),
        GradientReply(request=7, gradients=outputs),
        refusal(RefusalCode.BUSY, "two\nlines", request=7, queue_rows=9),
        InferRequest(images=torch.randint(0, 256, shape, dtype=torch.uint8, generator=chance), deadline_s=1.0, k=None),
        InferRequest(images=torch.rand(shape, generator=chance), deadline_s=1.0, k=4, identity="Überweg 7", trace="00-ab-cd-01"),
        InferReply(
            probabilities=torch.rand(2, 10, generator=chance),
            labels=torch.tensor([3, 9]),
            experts=torch.tensor([[0, 2], [1, -1]]),
            weights=torch.tensor([[0.5, 0.5], [1.0, 0.0]]),
            names=("a", "b", "c"),
            degraded=True,
            bytes_sent=1,
            bytes_received=2,
            seconds=0.5,
        ),
        CardRequest(),
        CardReply(card=card(), prototypes=outputs[:2]),
        CardReply(card=card(classes=()), prototypes=np.zeros((0, 4), dtype=np.float32)),
        StatusRequest(),
        StatusReply(view=view()),
        PingRequest(),
        PingReply(queue_rows=5),
    ]


def same(one: object, other: object) -> bool:
    """Say whether two records are equal, tensors bit by bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        one, other = one.numpy(), other.numpy()
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Message | ExpertRows):
        return all(same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    return one == other


def quantised(message: object) -> bool:
    """Say whether a message travels in codes, which is not exact."""
    message = message.forward if isinstance(message, GradientRequest) else message
    return isinstance(message, ExpertRequest | ExpertReply) and message.format in LARGEST_CODE


def check(data: bytes) -> Message | None:
    """Decode bytes and hold the result to the law; return the record, if they were one."""
    try:
        message = decode(data)
    except MessageError as error:
        if error.fault not in FAULTS or not str(error).isprintable():
            raise AssertionError(f"{error.fault}: {error!r}") from error
        return None
    again = decode(encode(message))
    assert type(again) is type(message)
    assert quantised(message) or same(message, again), f"{message} became {again}"
    return message


def fuzz(corpus: Path, limit: str) -> None:
    """Fuzz until a limit of libFuzzer's, and end the process."""
    import atheris

    modules = [module for name, module in sys.modules.items() if name.startswith("nmoe.node.messages.")]
    for function in (value for owner in (*modules, Body) for value in list(vars(owner).values()) if inspect.isfunction(value)):
        if function.__module__.startswith("nmoe.node.messages."):
            atheris.instrument_func(function)  # in place
    atheris.instrument_func(check)
    for number, message in enumerate(samples()):
        (corpus / f"sample-{number}").write_bytes(encode(message))
    options = [f"-max_len={MAX_BYTES}", "-rss_limit_mb=2048", "-timeout=10", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], str(corpus), limit, *options], check)
    atheris.Fuzz()


def main() -> int:
    """Fuzz from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=int, nargs="?", default=60)
    parser.add_argument("--runs", type=int, help="inputs, instead of seconds")
    parser.add_argument("--corpus", type=Path, help="folder of inputs to begin with and to add to; else one that is forgotten")
    arguments = parser.parse_args()
    if arguments.corpus is None:  # in a child, for libFuzzer ends its process without a chance to tidy up
        with tempfile.TemporaryDirectory() as corpus:
            return subprocess.run([sys.executable, *sys.argv, "--corpus", corpus], check=False).returncode
    arguments.corpus.mkdir(parents=True, exist_ok=True)
    fuzz(arguments.corpus, f"-max_total_time={arguments.seconds}" if arguments.runs is None else f"-runs={arguments.runs}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
