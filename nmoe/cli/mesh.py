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
