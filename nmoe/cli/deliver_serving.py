"""``nmoe deliver serve`` and ``nmoe deliver demo``."""

from pathlib import Path
from typing import Annotated

import typer

from nmoe.cli.deliver import deliver
from nmoe.cli.root import interruptible_import


@deliver.command()
def serve(
    folder: Annotated[Path, typer.Argument(help="Folder with safetensors files and their cards.", metavar="DIR")],
    http: Annotated[str, typer.Option(help="Where to listen; port 0 for any.", metavar="HOST:PORT")] = "127.0.0.1:8080",
    bandwidth_hz: Annotated[float, typer.Option(help="Bandwidth that all users share.")] = 20e6,
    spare_efficiency: Annotated[float, typer.Option(help="Bit/s/Hz at which requests without a user are paced.")] = 1.0,
    margin: Annotated[float, typer.Option(help="Share of the time to a deadline that plans keep in hand.")] = 0.05,
    idle_s: Annotated[float, typer.Option(help="Users silent for so long are dropped.")] = 15.0,
    max_users: Annotated[int, typer.Option(help="Users at a time.")] = 256,
    exit_with_parent: Annotated[bool, typer.Option("--exit-with-parent", help="Stop when standard input ends.")] = False,
) -> None:
    """Hand out model files over HTTP, each user's transfers paced to its planned share; plans anew when users come, go or slow down."""
    with interruptible_import():
        from nmoe.recipes.deliver_serve import deliver_serve
    deliver_serve(
        folder,
        http=http,
        bandwidth_hz=bandwidth_hz,
        spare_efficiency=spare_efficiency,
        margin=margin,
        idle_s=idle_s,
        max_users=max_users,
        lifeline=0 if exit_with_parent else None,
    )


@deliver.command()
def demo(
    models: Annotated[
        Path | None, typer.Option("--models", help="Folder with resnet.safetensors and vit.safetensors; random weights if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Small models and short deadlines: under a minute.")] = False,
    loopback: Annotated[bool, typer.Option("--loopback", help="No network namespaces, even where they are allowed.")] = False,
    out: Annotated[Path, typer.Option(help="Run folder.", metavar="DIR")] = Path("runs/deliver-demo"),
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier run in the folder.")] = False,
) -> None:
    """Serve models to several client processes behind shaped links, and compare with the plan who is served, and when."""
    from rich.console import Console

    with interruptible_import():
        from nmoe.recipes.deliver_demo import deliver_demo
    deliver_demo(out, models=models, seed=seed, quick=quick, loopback=loopback, force=force, say=typer.echo, show=Console().print)
