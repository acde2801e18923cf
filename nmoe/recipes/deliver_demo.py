"""The delivery demo: one server, several client processes behind links, and what became of the plan.

The models are nmoe's own networks. Each client's device is emulated: its layers take as long as they would on a device of ``device_flops``,
which is slower than this machine by a factor, so that clients that share a core do not disturb each other. The factor comes from timing the
models in all clients at once: once to choose devices, and again right before users register, when links and server are there. What the
layers took beyond it, while serving, is told.
The bandwidth is set so that all users but the neediest just fit. In network namespaces each client's link carries what it would have with
all of the bandwidth, and no more; where they are not allowed there is only the server's own pacing, over loopback.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from nmoe.core.bundle import ModelSpec
from nmoe.core.errors import BadFile, NmoeError
from nmoe.core.files import write_bytes, write_json
from nmoe.core.seeds import torch_generator
from nmoe.deliver.allocate import Allocation, Plan, plan
from nmoe.deliver.forward import simulate
from nmoe.deliver.member import LayerTimes
from nmoe.deliver.pack import pack
from nmoe.deliver.scenario import ModelProfile, Receiver, Scenario
from nmoe.deliver.server.folder import ModelFolder
from nmoe.moe.build import build
from nmoe.recipes.deliver_client import Calibrate, Ended, Enlist, Enlisted, Setting, Start, Timed
from nmoe.recipes.deliver_crew import Crew, CrewClient
from nmoe.recipes.run_folder import claim

if TYPE_CHECKING:
    from nmoe.report.deliver import ScheduledUser

RESNET, VIT = "resnet", "vit"
IMAGE_SIZE = 32
POWER_W, OVERHEAD_S, MIN_CLOCK = 10.0, 0.005, 0.4
BUSY = 0.4  # of the time to the deadline that the largest model computes at full clock
ENERGY = 0.85  # of what the largest model takes at full clock: slower clocks are needed where there is time
USED = 0.8  # of the bandwidth, by the users that fit
LEAST_SLOWDOWN = 2.0
TIMED_S = 4.0  # that clients time their models for
TOLD = 0.85  # of a device's speed as emulated, that the plan counts on: processes on shared cores slow each other, and more than when timed
MARGIN = 0.15  # more than a server's default: clients share few cores here, and take half a second to begin
USERS = (  # id, spectral efficiency in bit/s/Hz, models that would do, images in units of the demo's batch
    ("near", 5.0, (RESNET, VIT), 1),
    ("middle", 3.0, (VIT,), 3),
    ("far", 2.0, (RESNET,), 1),
    ("edge", 0.3, (RESNET, VIT), 1),
)

CallTimes = Mapping[str, Mapping[str, float]]  # in s, by user and model


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSize:
    """How large a demo is: the networks, images per task, and the time to the deadline in s."""

    resnet_widen: int
    vit_width: int
    vit_depth: int
    batch: int
    deadline_s: float


FULL = DemoSize(resnet_widen=8, vit_width=320, vit_depth=8, batch=4, deadline_s=8.0)
QUICK = DemoSize(resnet_widen=3, vit_width=192, vit_depth=4, batch=16, deadline_s=5.0)


def deliver_demo(
    out: Path,
    *,
    models: Path | None,
    seed: int,
    quick: bool,
    loopback: bool,
    force: bool,
    say: Callable[[str], None],
    show: Callable[[Any], None],
) -> dict[str, Any]:
    """Run the demo and return what results.json holds.

    Args:
        out: run folder.
        models: folder with ``resnet.safetensors`` and ``vit.safetensors`` of the demo's networks; None for random weights.
        seed: of random weights and images.
        quick: smaller and shorter.
        loopback: no network namespaces, even where they are allowed.
        force: replace an earlier run.
        say: told what goes on.
        show: given the tables.

    Raises:
        ValueError: when the run folder is taken, or a given model is not that network.
        NmoeError: when a process does not start, or fails.
    """
    claim(out, force=force, resumable=False)
    size = QUICK if quick else FULL
    specs = _specs(size)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nmoe-deliver-")))
        profiles = _write_models(folder / "models", specs, given=models, seed=seed)
        say(", ".join(f"{name} {sum(one.layer_bytes) / 1e6:.1f} MB in {len(one.layer_bytes)} layers" for name, one in profiles.items()))
        crew = stack.enter_context(Crew(folder / "models", loopback=loopback))
        say(crew.about)
        for number, (user, _, names, batches) in enumerate(USERS):
            cache = folder / f"cache-{number}"
            networks = {name: specs[name] for name in names}
            crew.add(user, Setting(models=networks, batch=size.batch * batches, image_size=IMAGE_SIZE, seed=seed, cache=str(cache)))
        crew.await_clients()
        scenario = _scenario(_timed(crew.clients), profiles, size)
        say("devices " + ", ".join(f"{user.id} {user.device_flops / 1e9:.2f} GFLOP/s" for user in scenario.users))
        slowdown, ended = _serve(crew, scenario)
    results = _results(scenario, ended, slowdown, crew.about)
    _write(out, results, scenario, ended)
    from nmoe.report.deliver_demo import demo_table

    show(demo_table(results))
    say(f"run folder {out}")
    return results


def _specs(size: DemoSize) -> dict[str, ModelSpec]:
    """Return the networks."""
    vit: dict[str, int | float | bool | str] = {
        "patch_size": 4,
        "width": size.vit_width,
        "depth": size.vit_depth,
        "heads": size.vit_width // 64,
        "cut": "cls",
    }
    return {
        RESNET: ModelSpec(kind="fixup_resnet", arguments={"in_channels": 3, "widen": size.resnet_widen}),
        VIT: ModelSpec(kind="vit", arguments={"in_channels": 3, "image_size": IMAGE_SIZE, **vit}),
    }


def _write_models(folder: Path, specs: Mapping[str, ModelSpec], *, given: Path | None, seed: int) -> dict[str, ModelProfile]:
    """Write the models' files and cards, and return their profiles."""
    folder.mkdir()
    shelf = ModelFolder(folder)
    profiles = {}
    for name, spec in specs.items():
        path = folder / f"{name}.safetensors"
        network = build(spec, generator=torch_generator(seed, "deliver-demo", name))
        if given is None:
            save_file(dict(network.state_dict()), path)
        elif not (given / path.name).is_file():
            raise BadFile(f"there is no file {given / path.name}")
        else:
            shutil.copyfile(given / path.name, path)
        pack(path, network, torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE))
        packed = shelf.packed(name)
        if isinstance(packed, str):
            raise BadFile(packed)
        profiles[name] = packed.profile
    return profiles


def _timed(clients: Sequence[CrewClient]) -> CallTimes:
    """Time the models in all clients at once, as they will run; return the s of each user's slowest call of each model."""
    for client in clients:
        client.tell(Calibrate(TIMED_S))
    return {client.user: client.hear(Timed).call_s for client in clients}


def _slowdown(scenario: Scenario, call_s: CallTimes) -> dict[str, dict[str, float]]:
    """Return how many times slower than this machine each user's device is, for each model; 1 where this machine is no faster."""
    return {
        user.id: {
            name: max(1.0, TOLD * user.batch * sum(scenario.models[name].layer_flops) / call_s[user.id][name] / user.device_flops)
            for name in user.models
        }
        for user in scenario.users
    }


def _scenario(call_s: CallTimes, profiles: Mapping[str, ModelProfile], size: DemoSize) -> Scenario:
    """Return what is to be planned."""
    users = []
    for user, efficiency, names, batches in USERS:
        batch = size.batch * batches
        flops = {name: batch * sum(profiles[name].layer_flops) for name in names}
        speeds = {name: flops[name] / call_s[user][name] for name in names}  # FLOP/s of this machine
        device = min(max(flops.values()) / (BUSY * size.deadline_s), min(speeds.values()) / LEAST_SLOWDOWN)
        users.append(
            Receiver(
                id=user,
                spectral_efficiency=efficiency,
                deadline_s=size.deadline_s,
                energy_j=ENERGY * POWER_W * max(flops.values()) / device,
                batch=batch,
                device_flops=device,
                power_w=POWER_W,
                layer_overhead_s=OVERHEAD_S,
                min_clock=MIN_CLOCK,
                models=names,
            )
        )
    return Scenario(bandwidth_hz=_bandwidth_hz(users, profiles), models=profiles, users=tuple(users))


def _bandwidth_hz(users: Sequence[Receiver], profiles: Mapping[str, ModelProfile]) -> float:
    """Return a bandwidth in which all users but the neediest just fit."""
    ample_hz = 1e15
    hurried = tuple(replace(user, deadline_s=user.deadline_s * (1 - MARGIN)) for user in users)
    needs = sorted(
        one.bandwidth_share * ample_hz for one in plan(Scenario(bandwidth_hz=ample_hz, models=profiles, users=hurried)).allocations
    )
    if not needs[0] > 0:
        raise NmoeError("this machine is too slow for the demo's deadlines: no bandwidth would be enough")
    return sum(needs[:-1]) / USED


def _serve(crew: Crew, scenario: Scenario) -> tuple[CallTimes, dict[str, Ended]]:
    """Serve all users at once, and return how long calls were to take on their devices at full clock, in s, and what became of each."""
    crew.serve(
        bandwidth_hz=scenario.bandwidth_hz,
        margin=MARGIN,
        rates_bps=[user.spectral_efficiency * scenario.bandwidth_hz for user in scenario.users],
    )
    call_s = _timed(crew.clients)
    slowdown = _slowdown(scenario, call_s)
    for client, user in zip(crew.clients, scenario.users, strict=True):
        client.tell(Enlist(client.server, {**asdict(user), "models": list(user.models)}))
    for client in crew.clients:
        client.hear(Enlisted)
    for client in crew.clients:
        client.tell(Start(slowdown[client.user]))
    emulated_s = {user: {name: s * slowdown[user][name] for name, s in times.items()} for user, times in call_s.items()}
    return emulated_s, {client.user: client.hear(Ended) for client in crew.clients}


def _results(scenario: Scenario, ended: Mapping[str, Ended], emulated_s: CallTimes, about: str) -> dict[str, Any]:
    """Return what results.json holds."""
    users: list[dict[str, Any]] = []
    for user in scenario.users:
        one = ended[user.id]
        users.append(
            {
                "id": user.id,
                "served": {"planned": one.given.served, "measured": one.finish_s is not None and one.finish_s <= user.deadline_s},
                "model": one.given.model,
                "bandwidth_share": one.given.bandwidth_share,
                "device_flops": user.device_flops,
                "deadline_s": user.deadline_s,
                "finish_s": {"planned": one.given.finish_s, "measured": one.finish_s},
                "reason": one.given.reason,
                "clocks": one.given.clocks,
                "compute_s": _compute_s(scenario, one, emulated_s[user.id]),
                "layers": {"planned": _planned_layers(scenario, one), "measured": [layer._asdict() for layer in one.layers]},
            }
        )
    hurried = replace(scenario, users=tuple(replace(user, deadline_s=user.deadline_s * (1 - MARGIN)) for user in scenario.users))
    others: dict[str, Plan] = {method: plan(hurried, method) for method in ("slide-equal", "dai", "dai-equal")}
    return {
        "links": about,
        "bandwidth_hz": scenario.bandwidth_hz,
        "served": {side: sum(user["served"][side] for user in users) for side in ("planned", "measured")},
        "users": users,
        "other_methods_serve": {method: other.served for method, other in others.items()},
    }


def _compute_s(scenario: Scenario, ended: Ended, emulated_s: Mapping[str, float]) -> dict[str, float | None]:
    """Return how long all layers were to compute, by what was timed before and the clocks that were given, and how long they did, in s."""
    given = ended.given
    if given.model is None or not ended.layers:
        return {"calibrated": None, "measured": None}
    flops = scenario.models[given.model].layer_flops
    cycles = sum(work / clock for work, clock in zip(flops, given.clocks, strict=True) if work) / sum(flops)
    spans = {(layer.started_s, layer.finished_s) for layer in ended.layers}  # layers that ran as one share theirs
    return {"calibrated": emulated_s[given.model] * cycles, "measured": sum(ended_s - began_s for began_s, ended_s in spans)}


def _planned_layers(scenario: Scenario, ended: Ended) -> list[dict[str, float]]:
    """Return when layers would have arrived, begun and ended by the allocation a user had when it began."""
    given = ended.given
    allocation = Allocation(
        id=given.id,
        served=given.served,
        model=given.model,
        bandwidth_share=given.bandwidth_share,
        clocks=given.clocks,
        finish_s=given.finish_s,
        energy_j=given.energy_j,
        slack_s=given.slack_s,
        reason=given.reason,
    )
    if not given.served:
        return []
    timeline = simulate(scenario, allocation)
    rows = zip(timeline.downloaded_s, timeline.started_s, timeline.finished_s, strict=True)
    return [LayerTimes(*row)._asdict() for row in rows]


def _write(out: Path, results: Mapping[str, Any], scenario: Scenario, ended: Mapping[str, Ended]) -> None:
    """Write results.json and the schedule that was measured."""
    from nmoe.report.deliver_demo import measured_figure
    from nmoe.report.figures.style import png_bytes

    write_bytes(out / "figures" / "measured.png", png_bytes(measured_figure(results, _measured_users(scenario, ended))))
    write_json(out / "results.json", results)


def _measured_users(scenario: Scenario, ended: Mapping[str, Ended]) -> "list[ScheduledUser]":
    """Return the users that had a model, as they ran."""
    from nmoe.report.deliver import ScheduledUser

    rows = []
    for user in scenario.users:
        one = ended[user.id]
        if one.given.model is None or one.given.energy_j is None or not one.layers:
            continue
        downloaded_s, started_s, finished_s = zip(*one.layers, strict=True)
        rows.append(
            ScheduledUser(
                id=user.id,
                model=one.given.model,
                bandwidth_share=one.given.bandwidth_share,
                deadline_s=user.deadline_s,
                energy_j=user.energy_j,
                energy_used_j=one.given.energy_j,
                clocks=one.given.clocks,
                downloaded_s=downloaded_s,
                started_s=started_s,
                finished_s=finished_s,
            )
        )
    return rows
