"""``nmoe deliver plan``."""

from pathlib import Path
from typing import Annotated

import typer

from nmoe.cli.deliver import deliver
from nmoe.cli.root import interruptible_import


@deliver.command()
def plan(
    scenario: Annotated[Path, typer.Argument(help="Scenario: bandwidth_hz, models and users.", metavar="FILE.toml")],
    method: Annotated[str, typer.Option(help="slide is optimal; an unknown name lists all.", metavar="NAME")] = "slide",
    spare: Annotated[str, typer.Option(help="What is done with bandwidth that is left over.", metavar="keep|share")] = "keep",
    compare: Annotated[bool, typer.Option(help="Show what all other methods would do, too.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of methods that draw.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON, and nothing else.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write plan.json, schedule.png and limits.png here.", metavar="DIR")] = None,
) -> None:
    """Plan who gets which model, how much of the bandwidth and which clocks, so that as many as possible meet their deadlines."""
    from rich.console import Console

    with interruptible_import():
        from nmoe.recipes.deliver_plan import deliver_plan
    deliver_plan(
        scenario, method=method, spare=spare, compare=compare, seed=seed, as_json=as_json, out=out, say=typer.echo, show=Console().print
    )
