"""Server: hands out model files over HTTP, each user's transfers paced to the share that the plan gives it."""

from nmoe.deliver.server.replanner import DeliverySettings
from nmoe.deliver.server.server import DeliveryServer
from nmoe.http import ServerError, serve_until_told

__all__ = ["DeliveryServer", "DeliverySettings", "ServerError", "serve_until_told"]
