"""``nmoe bench``: nmoe beside its peers."""

from pathlib import Path
from typing import Annotated

import typer

bench = typer.Typer(help="Measure nmoe beside its peers.", no_args_is_help=True, rich_markup_mode="rich")

AsJson = Annotated[bool, typer.Option("--json", help="Print name, machine and rows as JSON.")]


@bench.command()
def federate(
    as_json: AsJson = False,
    rounds: Annotated[int, typer.Option(help="Rounds measured per case and system.")] = 30,
) -> None:
    """Time a round of the in-process grid, of Flower's Ray simulation and of a bare loop over the same local step."""
    from nmoe.recipes.bench_federate import bench_federate as measure

    measure(rounds=rounds, as_json=as_json, say=typer.echo)


@bench.command()
def channel(
    as_json: AsJson = False,
    turns: Annotated[int, typer.Option(help="How often each system draws a million samples.")] = 20,
) -> None:
    """Count the SNRs of links that a core draws in a second: fading, path loss with shadowing, motion."""
    from nmoe.recipes.bench_channel import bench_channel

    bench_channel(turns=turns, as_json=as_json, say=typer.echo)


@bench.command()
def deliver(
    as_json: AsJson = False,
    turns: Annotated[int, typer.Option(help="How often each way is measured.")] = 3,
    model: Annotated[
        list[str] | None, typer.Option(help="Only this one; repeat for more.", metavar="ResNet-50|ViT-B-16|decoder-60M")
    ] = None,
) -> None:
    """Time a model that computes while it arrives beside downloading it first; its cost when the file is here; its memory."""
    from nmoe.recipes.bench_deliver.cases import CASES
    from nmoe.recipes.bench_deliver.measure import bench_deliver

    bench_deliver(models=model or list(CASES), turns=turns, as_json=as_json, say=typer.echo, note=lambda line: typer.echo(line, err=True))


@bench.command()
def deliver_plan(
    as_json: AsJson = False,
    users: Annotated[int, typer.Option(help="Users of the plan, each with 7 models of 60 layers.")] = 1000,
    pairs: Annotated[int, typer.Option(help="Users with a model that the convex solver solves one by one.")] = 200,
    turns: Annotated[int, typer.Option(help="How often the planner plans.")] = 5,
) -> None:
    """Time a large delivery plan, and its least shares of the bandwidth beside cvxpy with Clarabel."""
    from nmoe.recipes.bench_deliver_plan import bench_deliver_plan

    bench_deliver_plan(users=users, pairs=pairs, turns=turns, as_json=as_json, say=typer.echo)


@bench.command()
def mesh(
    as_json: AsJson = False,
    peer: Annotated[Path | None, typer.Option(help="A Python in which hivemind is installed, to measure it too.", metavar="PYTHON")] = None,
    turns: Annotated[int, typer.Option(help="Rounds per case and system.")] = 4,
    seconds: Annotated[float, typer.Option(help="Length of a round.")] = 1.0,
    hidden: Annotated[list[int] | None, typer.Option(help="Width of the experts; repeat for more (256 and 512 if not given).")] = None,
) -> None:
    """Time a call of a mixture, top 2 of 4 remote experts, beside the module alone, raw TCP, gRPC, Ray Serve and hivemind."""
    from nmoe.recipes.bench_mesh.measure import HIDDEN, bench_mesh

    bench_mesh(
        peer=peer,
        as_json=as_json,
        say=typer.echo,
        note=lambda line: typer.echo(line, err=True),
        turns=turns,
        seconds=seconds,
        hidden=hidden or HIDDEN,
    )


@bench.command()
def node(
    run: Annotated[Path, typer.Argument(help="Run folder with bundles of at least three nodes.")],
    as_json: AsJson = False,
    soak: Annotated[float, typer.Option(help="Seconds of a soak at 70 % of capacity; 0 for none.")] = 0.0,
) -> None:
    """Measure a real mesh here: start-up, memory, latency, HTTP, overload, lost and joining nodes."""
    from nmoe.recipes.bench_node import bench_node

    bench_node(run, soak_s=soak, as_json=as_json, say=typer.echo, note=lambda line: typer.echo(line, err=True))


@bench.command()
def churn(
    run: Annotated[
        Path | None, typer.Option(help="Run folder with bundles; trains the demo's mixture if not given.", metavar="DIR")
    ] = None,
    wire: Annotated[bool, typer.Option("--wire", help="Check the world against processes that are really killed.")] = False,
    seeds: Annotated[int, typer.Option(help="Choices of the failing nodes.")] = 3,
    as_json: AsJson = False,
    out: Annotated[Path | None, typer.Option(help="Write churn.json, churn.md and churn.png here.", metavar="DIR")] = None,
) -> None:
    """Accuracy and slowest answers against the share of nodes lost, slow or lossy: gate only, links only, both."""
    from nmoe.recipes.bench_churn import bench_churn

    bench_churn(run=run, seeds=seeds, wire=wire, as_json=as_json, out=out, say=typer.echo)


@bench.command()
def market(
    users: Annotated[int, typer.Option(help="Bidders.")] = 1_000_000,
    naive_users: Annotated[int, typer.Option(help="Bidders of the market that is also cleared one by one.")] = 3_000,
    turns: Annotated[int, typer.Option(help="How often each is cleared.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Time how long AERIA takes to clear a large market on one core, and a small one beside the way of its definition."""
    from nmoe.recipes.bench_market import bench_market

    bench_market(users=users, naive_users=naive_users, turns=turns, as_json=as_json, say=typer.echo)


@bench.command()
def market_service(
    seconds: Annotated[float, typer.Option(help="Of bidding per case.")] = 3.0,
    connections: Annotated[list[int] | None, typer.Option(help="At a time; repeat for more cases.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where the database is made; else in the temporary folder.", metavar="DIR")] = None,
    as_json: AsJson = False,
) -> None:
    """Count the bids that a market takes in a second, each on the disk before it is acknowledged; then kill it, and look for them."""
    from nmoe.recipes.bench_market_service import CONNECTIONS, bench_market_service

    bench_market_service(seconds=seconds, connections=connections or CONNECTIONS, folder=folder, as_json=as_json, say=typer.echo)


@bench.command()
def incentive(
    owners: Annotated[int, typer.Option(help="Model owners of the large game.")] = 100_000,
    games: Annotated[int, typer.Option(help="Small games in which ASOSA's turns are counted.")] = 200,
    turns: Annotated[int, typer.Option(help="How often the large game is settled.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Time the equilibria of a large recruitment, and count the turns after which ASOSA settles."""
    from nmoe.recipes.bench_incentive import bench_incentive

    bench_incentive(owners=owners, games=games, turns=turns, as_json=as_json, say=typer.echo)
