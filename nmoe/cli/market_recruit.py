"""``nmoe market recruit``."""

from pathlib import Path
from typing import Annotated

import typer

from nmoe.cli.market import market
from nmoe.cli.root import interruptible_import


@market.command()
def recruit(
    task: Annotated[Path | None, typer.Argument(help="Task: lambda, owners and workers.", metavar="FILE.toml")] = None,
    workers: Annotated[str, typer.Option(help="How the lower layer answers.", metavar="exact|learned")] = "exact",
    max_steps: Annotated[int, typer.Option(help="Turns after which the loop gives up.")] = 1000,
    episodes: Annotated[int | None, typer.Option(help="Episodes that learned workers train for first; 2400 if not given.")] = None,
    policies: Annotated[Path | None, typer.Option(help="Policies that learned workers begin with.", metavar="DIR")] = None,
    seed: Annotated[int, typer.Option(help="Seed of learned workers, and of the example.")] = 0,
    example: Annotated[int | None, typer.Option(help="Print a task with N random owners, and nothing else.", metavar="N")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON, and nothing else.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write plan.json, convergence.png, utilities.png and deviation.png.", metavar="DIR")
    ] = None,
) -> None:
    """Plan a federated task: the reward, who trains how much for what pay, and what workers are paid (ASOSA)."""
    from rich.console import Console

    with interruptible_import():
        from nmoe.recipes.market_recruit import example_recruitment, market_recruit
    if example is not None:
        if task is not None:
            raise ValueError("either a task or --example, got both")
        example_recruitment(example, seed=seed, say=typer.echo)
        return
    if task is None:
        raise ValueError("a task wanted, FILE.toml; --example 4 prints one")
    market_recruit(
        task,
        workers=workers,
        seed=seed,
        max_steps=max_steps,
        episodes=episodes,
        policies=policies,
        as_json=as_json,
        out=out,
        say=typer.echo,
        show=Console().print,
    )
