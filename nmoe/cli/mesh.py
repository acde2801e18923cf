"""``nmoe mesh``: a whole mesh on this machine, real or in virtual time."""

from pathlib import Path
from typing import Annotated

import click
import typer
from typer.core import TyperGroup

from nmoe.cli.root import interruptible_import


class _RunByDefault(TyperGroup):
    """``nmoe mesh RUN`` means ``nmoe mesh run RUN``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``run`` before what is no command."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["run", *args]
        return super().parse_args(ctx, args)


mesh = typer.Typer(cls=_RunByDefault, help="A whole mesh on this machine: real (nmoe mesh RUN), or in virtual time.", no_args_is_help=True)


@mesh.command()
def run(
    run: Annotated[Path, typer.Argument(help="Run folder with bundles.")],
    mesh: Annotated[str, typer.Option("--mesh", help="Name of the mesh.")] = "nmoe",
    http: Annotated[
        str | None, typer.Option(help="Answer over HTTP too; every node counts the port up by one.", metavar="HOST:PORT")
    ] = None,
) -> None:
    """Start every node of a run on this machine, until Ctrl-C."""
    with interruptible_import():
        from nmoe.recipes.mesh import run_mesh

    run_mesh(run, mesh=mesh, http=http, say=typer.echo)


@mesh.command()
def simulate(
    nodes: Annotated[int, typer.Option(help="How many.")] = 100,
    requests: Annotated[int, typer.Option(help="Offered in all, of one sample each.")] = 10_000,
    trace: Annotated[
        Path | None, typer.Option(help="Arrival times (.csv, .csv.gz), stretched to the rate; Poisson without.", metavar="FILE")
    ] = None,
    rtt: Annotated[
        str | None,
        typer.Option(
            help="Matrix of round trips in ms; the named ones need --rtt-dir; 20 ms everywhere without.",
            metavar="FILE.npz|seattle|planetlab",
        ),
    ] = None,
    rtt_dir: Annotated[Path | None, typer.Option(help="Folder of rtt.npz.", metavar="DIR")] = None,
    rate: Annotated[float | None, typer.Option(help="Requests per second of the whole mesh; two per node if not given.")] = None,
    neighbours: Annotated[
        int | None, typer.Option(help="Experts besides its own that a node can ask; 16 if not given, or all of fewer.")
    ] = None,
    replicas: Annotated[int, typer.Option(help="Nodes per expert.")] = 1,
    k: Annotated[int, typer.Option(help="Experts asked per sample.")] = 2,
    workers: Annotated[int, typer.Option(help="Threads that compute, per node.")] = 1,
    deadline_ms: Annotated[float, typer.Option(help="Time each request may take.")] = 1000.0,
    churn: Annotated[float, typer.Option(help="Departures per node and second: killed, frozen or drained.")] = 0.0,
    away: Annotated[float, typer.Option(help="Mean seconds until a node returns.")] = 5.0,
    loss: Annotated[float, typer.Option(help="Probability that a message is lost.")] = 0.0,
    tail: Annotated[str, typer.Option(help="Scatter of computing times.", metavar="lognormal:SIGMA|pareto:SHAPE|none")] = "lognormal:0.5",
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write results.json and a figure here.", metavar="DIR")] = None,
) -> None:
    """Run the mesh's own protocol in virtual time: thousands of nodes, real arrivals and round trips, churn, heavy tails."""
    with interruptible_import():
        from nmoe.recipes.simulate import SimulateOptions
        from nmoe.recipes.simulate import simulate as run_simulation

    options = SimulateOptions(
        nodes=nodes,
        requests=requests,
        trace=trace,
        rtt=rtt,
        rtt_dir=rtt_dir,
        rate=rate,
        neighbours=neighbours,
        replicas=replicas,
        k=k,
        workers=workers,
        deadline_ms=deadline_ms,
        churn=churn,
        away_s=away,
        loss=loss,
        tail=tail,
        seed=seed,
    )
    run_simulation(options, as_json=as_json, out=out, say=typer.echo)
