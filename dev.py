"""Set-up: make the virtual environment ``.venv`` beside this file and install nmoe into it.

``python3 dev.py setup [--extra dev]``, from any folder; the Makefile calls it before everything else. Standard library only. When nothing
has changed since the last time (a stamp in ``.venv`` tells) it ends at once; when the last time was cut short, it starts from nothing. What
pip says goes to ``.venv/install.log``.

NMOE_TORCH_INDEX, if set, is an extra wheel index for PyTorch alone, such as PyTorch's CPU wheel index: without it pip on Linux installs
the much larger CUDA build.
"""

import argparse
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 - whoever runs this may have an older one
    sys.exit(f"error: nmoe needs Python 3.11 or newer, this is {platform.python_version()}; name another: make PYTHON=python3.12 ...")

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "nmoe-stamp.json"
UNFINISHED = VENV / "nmoe-unfinished"
LOG = VENV / "install.log"
INCLUDED = {"dev": {"dev", "flower", "radio", "models"}}  # an extra that brings others along

# What a run imports. Imported once at the end of set-up, which proves the installation and leaves byte code behind for exactly these;
# pip's own byte-compiling of everything takes three times as long as the rest of the installation.
WARM = "torch, sklearn.datasets, safetensors.torch, zenoh, msgspec, typer, rich.progress, rich.table, matplotlib.pyplot, dp_accounting"
WARM_EXTRA = {"flower": "flwr.app, flwr.serverapp, flwr.clientapp", "dev": "pytest, hypothesis, beartype, psutil"}


class SetupError(Exception):
    """Set-up that cannot go on; the message is one line."""


def fingerprint() -> str:
    """Return a hash of everything an installation depends on."""
    digest = hashlib.sha256(f"{ROOT}|{platform.python_version()}|{platform.machine()}|".encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def read_stamp() -> "tuple[str, set[str]]":
    """Return the fingerprint and the extras of what is installed in ``.venv``; an empty fingerprint when there is nothing whole."""
    if UNFINISHED.exists() or not STAMP.is_file() or not PYTHON.exists():
        return "", set()
    stamp = json.loads(STAMP.read_text("utf-8"))
    return stamp["fingerprint"], set(stamp["extras"])


def known_extras() -> "set[str]":
    """Return the names of the extras in pyproject.toml."""
    import tomllib

    return set(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"])


def pinned(name: str) -> str:
    """Return ``name==version`` as it stands in constraints.txt."""
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        if line.startswith(f"{name}=="):
            return line.strip()
    raise SetupError(f"constraints.txt has no version of {name}")


def last_words(start: int) -> str:
    """Return the line of the log after byte ``start`` that best says what went wrong: pip's last ERROR, else the last line."""
    lines = [line.strip() for line in LOG.read_bytes()[start:].decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no output"])[-1]


def run(title: str, command: "list[str]", environment: "dict[str, str] | None" = None) -> None:
    """Run one step, its output to the log, its title and seconds to the terminal.

    Raises:
        SetupError: when the step fails; the message holds the line that says why.
    """
    began, shown = time.monotonic(), sys.stderr.isatty()
    with LOG.open("ab") as log:
        log.write(f"\n$ {' '.join(command)}\n".encode())
        log.flush()
        start = log.tell()
        step = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment, close_fds=False
        )
        with step:
            while step.poll() is None:
                if shown:
                    print(f"\r  {title} ... {time.monotonic() - began:.0f} s", end="", file=sys.stderr, flush=True)
                time.sleep(0.2)
    print(f"{chr(13) if shown else ''}  {title}: {time.monotonic() - began:.0f} s     ", file=sys.stderr, flush=True)
    if step.returncode > 0:  # pip ended in order, not by a signal: what it had installed is whole, and the next call goes on from there
        UNFINISHED.unlink(missing_ok=True)
    if step.returncode != 0:
        raise SetupError(f"{title} failed: {last_words(start)} (all of it in {LOG})")


def make_venv() -> None:
    """Make ``.venv``, unless a usable one is there; one left unfinished, broken or of another Python is thrown away."""
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            series = "{}.{}".format(*sys.version_info)
            raise SetupError(f"this Python has no {module} module; on Debian and Ubuntu: apt install python{series}-venv")
    if VENV.exists() and (UNFINISHED.exists() or not usable()):
        shutil.rmtree(VENV)
    VENV.mkdir(exist_ok=True)
    UNFINISHED.touch()
    STAMP.unlink(missing_ok=True)
    LOG.unlink(missing_ok=True)
    if not PYTHON.exists():
        base = str(Path(sys.base_prefix) / "bin" / "python{}.{}".format(*sys.version_info))
        run("virtual environment", [base if Path(base).exists() else sys.executable, "-m", "venv", str(VENV)])


def usable() -> bool:
    """Say whether the Python in ``.venv`` runs, is of this series, and has a pip made for this very folder."""
    report = "import sys, pip; print(*sys.version_info[:2], sys.prefix)"
    try:
        answer = subprocess.run([str(PYTHON), "-I", "-c", report], capture_output=True, text=True, check=False)
    except OSError:
        return False
    if answer.stdout.strip() != f"{sys.version_info.major} {sys.version_info.minor} {VENV}":
        return False
    pip = VENV / "bin" / "pip"
    return pip.exists() and str(VENV) in pip.read_text("utf-8", "replace")  # after a move it still names the old place


def install(extras: "set[str]") -> None:
    """Install torch, then nmoe with these extras in editable form, at the versions of constraints.txt."""
    pip = [str(PYTHON), "-I", "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--no-compile"]
    constraints = ["-c", str(ROOT / "constraints.txt")]
    index = os.environ.get("NMOE_TORCH_INDEX")
    extra_index = ["--retries", "0", "--timeout", "15", "--extra-index-url", index] if index else []
    run("PyTorch", [*pip, *constraints, *extra_index, pinned("torch")])
    wanted = f"[{','.join(sorted(extras))}]" if extras else ""
    run(f"nmoe{wanted} and what it needs", [*pip, *constraints, "-e", f"{ROOT}{wanted}"])
    covered = covering(extras)
    modules = ", ".join([WARM, *(WARM_EXTRA[extra] for extra in sorted(covered) if extra in WARM_EXTRA)])
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH")}
    run("first import", [str(PYTHON), "-c", f"import {modules}"], environment | {"MPLBACKEND": "Agg", "FLWR_TELEMETRY_ENABLED": "0"})


def covering(extras: "set[str]") -> "set[str]":
    """Return these extras and those they bring along."""
    return set().union(*(INCLUDED.get(extra, {extra}) for extra in extras))


def setup(extras: "set[str]") -> None:
    """Bring ``.venv`` to hold nmoe with these extras, and those it has already; a second call waits for the first to end.

    Raises:
        SetupError: when an extra is unknown or a step fails.
    """
    unknown = extras - known_extras()
    if unknown:
        raise SetupError(f"extra must be one of {', '.join(sorted(known_extras()))}, got {', '.join(sorted(unknown))}")
    wanted = fingerprint()
    with (ROOT / "pyproject.toml").open() as lock:
        os.set_inheritable(lock.fileno(), True)  # a pip that outlives us keeps the lock until it ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another set-up of this folder to end", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        found, present = read_stamp()
        if found == wanted and extras <= covering(present):
            return
        print(f"setting up {VENV} (once)", file=sys.stderr, flush=True)
        extras = extras | present
        make_venv()
        install(extras)
        STAMP.write_text(json.dumps({"fingerprint": wanted, "extras": sorted(extras)}) + "\n")
        UNFINISHED.unlink()


def main() -> int:
    """Parse the command line and set up; return the exit code."""
    parser = argparse.ArgumentParser(description="Make .venv and install nmoe into it.")
    parser.add_argument("command", choices=["setup"])
    parser.add_argument("--extra", action="append", default=[], help="an extra of pyproject.toml, such as dev; may be repeated")
    arguments = parser.parse_args()
    try:
        setup(set(arguments.extra))
    except (SetupError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up interrupted; the same command starts it again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
