"""The command line: argument parsing only. Every command calls one function; heavy libraries are imported inside it.

A mistake or a failure of the world is one line on standard error and exit code 2. ``NMOE_TRACEBACK=1`` shows where it came from.
"""

import os
import sys
from typing import NoReturn

from nmoe.cli.root import app
from nmoe.cli.training import demo, train

from nmoe.cli.serving import infer, node, router, top  # isort: skip  # the order of commands in the help
from nmoe.cli.mesh import mesh  # isort: skip
from nmoe.cli.keys import keys  # isort: skip
from nmoe.cli.reproduce import reproduce  # isort: skip
from nmoe.cli import reproduce_incentive  # isort: skip  # it adds a command to reproduce
from nmoe.cli.deliver import deliver  # isort: skip
from nmoe.cli import deliver_planning, deliver_serving  # isort: skip  # they add commands to deliver
from nmoe.cli.market import market  # isort: skip
from nmoe.cli import market_recruit, market_service  # isort: skip  # they add commands to market
from nmoe.cli.bench import bench  # isort: skip
from nmoe.core.errors import NmoeError

app.add_typer(mesh, name="mesh")
app.add_typer(keys, name="keys")
app.add_typer(reproduce, name="reproduce")
app.add_typer(deliver, name="deliver")
app.add_typer(market, name="market")
app.add_typer(bench, name="bench")

__all__ = [
    "app",
    "bench",
    "deliver",
    "deliver_planning",
    "deliver_serving",
    "demo",
    "infer",
    "keys",
    "main",
    "market",
    "market_recruit",
    "market_service",
    "mesh",
    "node",
    "reproduce",
    "reproduce_incentive",
    "router",
    "top",
    "train",
]


def main() -> NoReturn:
    """Run the command line."""
    try:
        app(standalone_mode=True)
    except (NmoeError, ValueError, OSError) as error:
        if os.environ.get("NMOE_TRACEBACK"):
            raise
        said = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.filename else str(error)
        print(f"error: {' '.join(said.split())}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)
