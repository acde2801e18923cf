"""Check sums: where a ``SHA256SUMS`` file lies beside the data, what is read must be what it lists."""

from pathlib import Path

from nmoe.core.errors import BadFile
from nmoe.core.files import sha256


def _read_sums(path: Path) -> dict[str, str]:
    """Return the digest of each name in a ``SHA256SUMS`` file."""
    listed = {}
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        digest, name = line[:64], line[66:]
        if len(digest) < 64 or line[64:66] not in ("  ", " *") or not name:
            raise BadFile(f"{path} line {number} is not '<sha256>  <name>'")
        listed[name] = digest.lower()
    return listed


def verify(path: Path, data_dir: Path) -> None:
    """Compare a file with ``SHA256SUMS`` in the data folder, or beside that folder where it is named ``vision``.

    A file that is not listed, or without such a list, passes.

    Args:
        path: the file, in ``data_dir`` or below it.
        data_dir: the data folder.

    Raises:
        BadFile: when the hash differs, or the list cannot be read.
    """
    root, file = data_dir.absolute(), path.absolute()
    for folder in (root, root.parent) if root.name == "vision" else (root,):
        if not (folder / "SHA256SUMS").is_file():
            continue
        wanted = _read_sums(folder / "SHA256SUMS").get(file.relative_to(folder).as_posix())
        if wanted is not None and sha256(file) != wanted:
            raise BadFile(f"{path} is damaged: its SHA-256 is not the one in {folder / 'SHA256SUMS'}")
