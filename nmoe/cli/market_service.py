"""``nmoe market serve`` and ``nmoe market verify``."""

from pathlib import Path
from typing import Annotated

import typer

from nmoe.cli.market import market

Workloads = Annotated[
    Path | None, typer.Option(help="Other workloads than the built-in ones; see docs/how-to/market.md.", metavar="FILE.toml|.json|.csv")
]


@market.command()
def serve(
    database: Annotated[Path, typer.Option(help="SQLite file; made if it is not there.", metavar="FILE")] = Path("market.sqlite"),
    http: Annotated[str, typer.Option(help="Where to listen; port 0 for any.", metavar="HOST:PORT")] = "127.0.0.1:8090",
    port: Annotated[int | None, typer.Option(help="Listen at this port of 127.0.0.1; instead of --http.")] = None,
    mechanism: Annotated[str, typer.Option(help="An unknown name lists all.", metavar="NAME")] = "aeria-ic",
    base: Annotated[float | None, typer.Option(help="Base of the mechanism's rounding, above 1; its own if not given.")] = None,
    price: Annotated[float | None, typer.Option(help="Unit price of the mechanism that has a fixed one.")] = None,
    capacity: Annotated[float, typer.Option(help="Units for sale in an epoch.", show_default="no limit")] = float("inf"),
    unit_cost: Annotated[float, typer.Option(help="What a unit costs the provider.")] = 0.0,
    epoch_s: Annotated[float, typer.Option(help="Length of an epoch; 0 for epochs that the operator ends.")] = 60.0,
    max_bids: Annotated[int, typer.Option(help="Bids that an epoch takes.")] = 100_000,
    operator_token: Annotated[
        str,
        typer.Option(
            envvar="NMOE_OPERATOR_TOKEN",
            show_default=False,
            help="Ends epochs by POST /epochs/ID/close. Other users see arguments: better the variable.",
        ),
    ] = "",
    workloads: Workloads = None,
    exit_with_parent: Annotated[bool, typer.Option("--exit-with-parent", help="Stop when standard input ends.")] = False,
) -> None:
    """Sell edge compute over HTTP: sealed bids, an auction per epoch, a draw committed to before and checkable afterwards."""
    from nmoe.recipes.market_serve import market_serve

    market_serve(
        database,
        http=http if port is None else f"127.0.0.1:{port}",
        mechanism=mechanism,
        base=base,
        price=price,
        capacity=capacity,
        unit_cost=unit_cost,
        epoch_s=epoch_s,
        max_bids=max_bids,
        operator_token=operator_token,
        workloads=workloads,
        lifeline=0 if exit_with_parent else None,
    )


@market.command()
def verify(
    record: Annotated[Path, typer.Argument(help="What GET /epochs/ID returned, byte for byte.", metavar="EPOCH.json")],
    commitment: Annotated[str | None, typer.Option(help="As noted while the epoch was open.", metavar="HEX")] = None,
    receipt: Annotated[
        list[Path] | None, typer.Option(help="Answer to a bid that has to be there; repeat for more.", metavar="FILE")
    ] = None,
    workloads: Workloads = None,
) -> None:
    """Compute a closed epoch again from its bids: commitment, draw, demands, outcome, payments; exit code 2 if anything differs."""
    from nmoe.recipes.market_verify import market_verify

    market_verify(record, commitment=commitment, receipts=receipt or [], workloads=workloads, say=typer.echo)
