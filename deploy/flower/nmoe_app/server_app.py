"""What the SuperLink runs once per run."""

from nmoe.federate.flower import make_server_app
from nmoe.recipes.deploy import server_main

app = make_server_app(server_main)
