"""Ray Serve: a cluster of its own, one replica that holds the four experts, calls by deployment handle.

Tensors travel as numpy arrays, which Ray passes without copying where it can. The replica's method is a coroutine, so it computes in the
replica's loop like the other references; no HTTP proxy and no dashboard is started.
"""

import asyncio
import logging
import os
import tempfile
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nmoe.recipes.bench_mesh.base import SyncSystem, Unavailable
from nmoe.recipes.bench_mesh.ffn import FfnGate, combine, make_experts
from nmoe.recipes.bench_mesh.processes import STOP_S, descendants, kill

Array = np.ndarray[Any, np.dtype[np.float32]]


class RayExperts:
    """What the replica holds."""

    def __init__(self, hidden: int) -> None:
        torch.set_num_threads(1)
        self._experts = make_experts(hidden)

    async def expert(self, number: int, x: Array) -> Array:
        """Return an expert's outputs [rows, hidden]."""
        with torch.inference_mode():
            output: Array = self._experts[number](torch.from_numpy(x.copy())).numpy()  # Ray's arrays may not be written to
        return output


class RaySystem(SyncSystem):
    """A Ray Serve deployment handle."""

    name = "ray serve"
    busy_when_idle = True  # 6 % of a core, measured

    def __init__(self, hidden: int) -> None:
        super().__init__(hidden)
        self._before: set[int] = set()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def missing(self) -> str | None:
        return None if find_spec("ray") else "ray is not installed"

    async def start(self) -> None:
        self._before = set(descendants(os.getpid()))
        await asyncio.to_thread(self._start)
        self._gate = FfnGate(hidden=self.hidden)

    async def stop(self) -> None:
        if not self._folder:
            return
        ours = self.server_pids()
        try:
            await asyncio.wait_for(asyncio.to_thread(self._stop), 4 * STOP_S)
        finally:
            kill(ours)
            self._folder.cleanup()

    async def moe(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            plan = self._gate.plan(x)
        calls = [self._handle.expert.remote(share.expert, share.inputs.numpy()) for share in plan.shares]
        return combine(plan, [torch.from_numpy((await call).copy()) for call in calls])

    def call(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            plan = self._gate.plan(x)
        calls = [self._handle.expert.remote(share.expert, share.inputs.numpy()) for share in plan.shares]
        return combine(plan, [torch.from_numpy(call.result().copy()) for call in calls])

    def server_pids(self) -> list[int]:
        return [pid for pid in descendants(os.getpid()) if pid not in self._before]

    def _start(self) -> None:
        import ray
        from ray import serve

        self._folder = tempfile.TemporaryDirectory(prefix="nmoe-ray-", ignore_cleanup_errors=True)  # else logs pile up in /tmp/ray
        try:
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, _temp_dir=self._folder.name)
            serve.start(http_options={"location": "NoServer"}, logging_config={"log_level": "ERROR", "enable_access_log": False})
            deployment = serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})(RayExperts)
            self._handle: Any = serve.run(deployment.bind(self.hidden), route_prefix=None)
        except (ray.exceptions.RayError, RuntimeError, ConnectionError, OSError) as error:
            raise Unavailable(f"Ray Serve did not start: {error}") from error

    def _stop(self) -> None:
        import ray
        from ray import serve

        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()
