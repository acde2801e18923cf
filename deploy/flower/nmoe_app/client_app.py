"""What a SuperNode runs for every message."""

from nmoe.federate.flower import make_client_app
from nmoe.recipes.deploy import client_program

app = make_client_app(client_program)
