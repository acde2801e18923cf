"""Serve a folder of models until told to stop."""

import os
from pathlib import Path

from nmoe.deliver.server import DeliveryServer, DeliverySettings, serve_until_told


def deliver_serve(
    folder: Path,
    *,
    http: str,
    bandwidth_hz: float,
    spare_efficiency: float,
    margin: float,
    idle_s: float,
    max_users: int,
    lifeline: int | None = None,
) -> None:
    """Serve; prints ``ready http://host:port`` once it does.

    Args:
        folder: with safetensors files and their cards.
        http: where to listen, such as ``127.0.0.1:8080``.
        bandwidth_hz: see ``DeliverySettings``, as the next four.
        spare_efficiency: at which requests without a user are paced.
        margin: of plans, in time.
        idle_s: until a silent user is dropped.
        max_users: at a time.
        lifeline: file descriptor whose end ends the server.

    Raises:
        ValueError: when the address is none, or a number is out of range.
        BadFile: when there is no such folder.
        ServerError: when it cannot listen, or broke down.
    """
    host, colon, port = http.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"an HTTP address looks like 127.0.0.1:8080, got {http!r}")
    settings = DeliverySettings(
        bandwidth_hz=bandwidth_hz, spare_efficiency=spare_efficiency, margin=margin, idle_s=idle_s, max_users=max_users
    )
    server = DeliveryServer(folder, host.strip("[]"), int(port), settings=settings)
    serve_until_told(server, tell=_tell, lifeline=lifeline)


def _tell(line: str) -> None:
    os.write(1, f"{line}\n".encode())
