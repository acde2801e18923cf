"""``nmoe market``: who is served at which price, and who trains for what pay."""

from pathlib import Path
from typing import Annotated

import typer

market = typer.Typer(help="Sell edge compute by auction, and pay those who train.", no_args_is_help=True, rich_markup_mode="rich")


@market.command()
def auction(
    bids: Annotated[
        Path,
        typer.Argument(
            help="Columns id, bid, demand; or id, bid, workload, accuracy, latency_s, tasks, device_flops, uplink_bps.", metavar="BIDS.csv"
        ),
    ],
    mechanism: Annotated[
        str, typer.Option(help="aeria-ic, aeria-ef, aeria-mixture, or a baseline; an unknown name lists all.", metavar="NAME")
    ] = "aeria-ic",
    capacity: Annotated[float, typer.Option(help="Units for sale in all (FLOP/s where needs are given).", show_default="no limit")] = float(
        "inf"
    ),
    unit_cost: Annotated[float, typer.Option(help="What a unit costs the provider.")] = 0.0,
    base: Annotated[
        float | None, typer.Option(help="Base of the estimate's random rounding, above 1 (the mechanism's own if not given).")
    ] = None,
    price: Annotated[float | None, typer.Option(help="Unit price of fixed-price, its cost included.")] = None,
    draw: Annotated[
        float | None, typer.Option(help="The random draw, in [0, 1); from the operating system if not given.", metavar="U")
    ] = None,
    workloads: Annotated[
        Path | None, typer.Option(help="Your own workloads; see docs/how-to/market.md.", metavar="FILE.toml|.json|.csv")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON, and nothing else.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write market.json, market.png and the bids as used here.", metavar="DIR")] = None,
) -> None:
    """Clear one market: who is served, at which price, with which partition, exit and share of the edge, and why."""
    from rich.console import Console

    from nmoe.recipes.market_auction import market_auction

    market_auction(
        bids,
        mechanism=mechanism,
        capacity=capacity,
        unit_cost=unit_cost,
        base=base,
        price=price,
        draw=draw,
        workloads=workloads,
        as_json=as_json,
        out=out,
        say=typer.echo,
        show=Console().print,
    )
