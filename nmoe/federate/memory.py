"""Memory: what a node keeps between messages, versioned by the run's clock so that a resumed run repeats itself bit for bit.

A message at clock t reads the newest version written before t and writes version t. A run killed after a node wrote but before the server's
checkpoint repeats its round; so every version since the last checkpoint, and the newest one before it, is kept. With a folder, versions are
safetensors files on the node's own disk, so a restarted process finds them; without, they live in this process.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from nmoe.core.errors import BadFile
from nmoe.core.files import write_bytes

ALWAYS = 1 << 62  # a clock after every clock


class NodeMemory:
    """Named sets of tensors of one node.

    Args:
        folder: where versions are written, or None for this process alone.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._held: dict[tuple[str, int], dict[str, Tensor]] = {}

    def versions(self, name: str) -> list[int]:
        """Return the clocks at which ``name`` was written, oldest first."""
        if self._folder is None:
            return sorted(clock for held, clock in self._held if held == name)
        return sorted(int(path.name.split(".")[1]) for path in self._folder.glob(f"{name}.*.safetensors"))

    def read(self, name: str, *, before: int) -> dict[str, Tensor] | None:
        """Return the newest version written before a clock, or None if there is none; do not change the tensors in place.

        Raises:
            BadFile: when the version's file is damaged.
        """
        older = [clock for clock in self.versions(name) if clock < before]
        if not older:
            return None
        key = (name, older[-1])
        if key not in self._held:
            assert self._folder is not None
            path = self._path(*key)
            try:
                self._held[key] = load(path.read_bytes())
            except SafetensorError as error:
                raise BadFile(f"{path} is damaged: {error}") from error
        return self._held[key]

    def write(self, name: str, tensors: Mapping[str, Tensor], *, at: int, safe: int) -> None:
        """Write version ``at``; forget versions older than the newest one of the last checkpoint's clock, ``safe``."""
        kept = {key: tensor.detach().contiguous().clone() for key, tensor in tensors.items()}
        if self._folder is not None:
            write_bytes(self._path(name, at), save(kept))
        self._held[name, at] = kept
        for clock in [clock for clock in self.versions(name) if clock <= safe][:-1]:
            self._held.pop((name, clock), None)
            if self._folder is not None:
                self._path(name, clock).unlink(missing_ok=True)
        kept_clocks = set(self.versions(name))
        for key in [key for key in self._held if key[0] == name and key[1] not in kept_clocks]:
            del self._held[key]  # another process acting for this node has removed it from disk

    def _path(self, name: str, clock: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{name}.{clock}.safetensors"
