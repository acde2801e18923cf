"""The error tree: what the world can do to us.

A caller's mistake is a plain ``ValueError``; everything here is the world's failure. The command line turns both into one line and exit
code 2.
"""

from typing import Literal

Fault = Literal["cut off", "too long", "not ours", "version", "kind", "header", "shape", "number", "name"]


class NmoeError(Exception):
    """Any failure of the world that nmoe names: files, networks, other processes."""


class BadFile(NmoeError):
    """A file that is missing, damaged, or not what its name promises."""


class BundleError(BadFile):
    """A bundle whose card, hashes, sizes or shapes do not hold together."""


class EngineError(NmoeError):
    """An engine, a federated one or a library that is optional, that could not start or carry messages."""


class MeshError(NmoeError):
    """A mesh that did not come up, or a node that cannot be reached."""


class MeshBusy(MeshError):
    """Whoever was asked has as much to do as they take on: told at once, to be asked again later."""


class MessageError(NmoeError):
    """Bytes on the wire that are not a message of a known version.

    Attributes:
        fault: what is wrong with them, out of a few words, so that faults can be counted by kind. ``header`` is whatever else does not
            hold together.
    """

    def __init__(self, text: str, *, fault: Fault = "header") -> None:
        super().__init__(text)
        self.fault: Fault = fault
