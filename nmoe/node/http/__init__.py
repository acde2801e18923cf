"""HTTP: the Open Inference Protocol version 2, metrics, an OpenAPI page and the dashboard in front of a node."""

from nmoe.node.http.server import HttpServer

__all__ = ["HttpServer"]
