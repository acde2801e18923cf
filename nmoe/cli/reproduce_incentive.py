"""``nmoe reproduce incentive`` and ``nmoe reproduce learned-workers``."""

from typing import Annotated

import typer

from nmoe.cli.reproduce import Out, Quick, reproduce, run_folder
from nmoe.cli.root import interruptible_import
from nmoe.cli.training import Force, command_line


@reproduce.command()
def incentive(
    scale: Annotated[str, typer.Option(help="How many points each curve has.", metavar="cpu|paper")] = "cpu",
    seeds: Annotated[int | None, typer.Option(help="Games at every point; 20 if not given, 3 with --quick.")] = None,
    learned: Annotated[int, typer.Option(help="Games that learned workers settle too, minutes each; where nothing is varied.")] = 0,
    episodes: Annotated[int, typer.Option(help="Episodes that they train for first.")] = 2400,
    quick: Quick = False,
    out: Out = None,
    force: Force = False,
) -> None:
    """Convergence of ASOSA, and everybody's utility against lambda, owners, workers and cost, beside all baselines (arXiv 2509.10512)."""
    with interruptible_import():
        from nmoe.recipes.incentive_reproduction import reproduce_incentive

        if learned:
            from nmoe.recipes.incentive_learned import contenders
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    with run_folder(out, "incentive") as (folder, progress):
        reproduce_incentive(
            scale=scale,
            seeds=seeds,
            learned=learned,
            brief=quick,
            out=folder,
            force=force,
            command=command_line(),
            progress=progress,
            contenders=contenders(episodes) if learned else None,
        )


@reproduce.command("learned-workers")
def learned_workers(
    seeds: Annotated[int, typer.Option(help="Games, each with a training of its own.")] = 3,
    episodes: Annotated[int | None, typer.Option(help="Of a training; 2000 if not given, few with --quick.")] = None,
    retrained: Annotated[int | None, typer.Option(help="Of one agent against the others; half as many if not given.")] = None,
    quick: Quick = False,
    out: Out = None,
    force: Force = False,
) -> None:
    """Owners' prices and workers' efforts by MAPPO against the closed form, and what one agent could gain; needs the extra market."""
    with interruptible_import():
        from nmoe.market.incentive.learners.ppo import PPO
        from nmoe.recipes.market_learn import RANGES, learn_market
    with run_folder(out, "learned-workers") as (folder, progress):
        learn_market(
            ranges=RANGES,
            seeds=seeds,
            episodes=episodes,
            retrained=retrained,
            brief=quick,
            ppo=PPO(),
            out=folder,
            force=force,
            command=command_line(),
            progress=progress,
        )
