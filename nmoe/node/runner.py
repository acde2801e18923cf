"""Runner: one serving node. Puts together what answers (``dispatcher.py``), what computes (``workers.py``) and what serves peers.

A request is queued for a worker, which extracts and scores together all that wait, and sends the messages the protocol decides on; the
last reply to come, on the transport's thread, completes the answer. Nothing here waits: what finds no room is refused at once.
"""

import asyncio
import itertools
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from nmoe.core.bundle import Bundle, BundleCard, read_bundle
from nmoe.core.errors import BundleError, MessageError
from nmoe.moe.layer import combine
from nmoe.node.answers import Answers
from nmoe.node.bank import NodeCompute
from nmoe.node.batcher import Batch, Batcher, Job, Line
from nmoe.node.dispatcher import Cargo, Dispatcher, Hooks, fill
from nmoe.node.events import ComputeFailed, Finish, InferArrived, OwnAnswered, Refuse
from nmoe.node.expert_server import ExpertServer, ExpertWork, Task
from nmoe.node.messages import (
    MAX_MESSAGE_BYTES,
    MAX_ROWS,
    CardReply,
    InferReply,
    InferRequest,
    Message,
    Refusal,
    RefusalCode,
    StatusReply,
    StatusRequest,
    TensorFormat,
    decode_as,
    encode,
    refusal,
)
from nmoe.node.newcomers import Newcomers
from nmoe.node.protocol import Origin, Rules
from nmoe.node.service import NodeService
from nmoe.node.timers import Timers
from nmoe.node.transport.base import Respond, Service, Transport
from nmoe.node.view import NodeView
from nmoe.node.workers import Workers

ANSWER_MARGIN_S = 0.05  # an answer leaves this much before its deadline, or a tenth of the deadline if that is less; our choice
