"""The whole federation on this machine: a SuperLink with TLS, SuperNodes with keys, and a training run through them.

    python3 dev.py setup --extra flower
    .venv/bin/python deploy/loopback.py [--nodes 2] [--rounds 2] [--gate-rounds 2] [--keep]

Makes certificates and keys (openssl, ssh-keygen), starts everything on 127.0.0.1 in a temporary folder, submits deploy/flower, follows the
run, checks that every node wrote a sound bundle and that all have one extractor, and ends every process it started. Exit code 0 only then.
The same steps for real machines: docs/how-to/federate-over-machines.md.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

APP = Path(__file__).resolve().parent / "flower"
BIN = Path(sys.executable).parent  # of the environment that nmoe is installed in
CONNECTION = "loopback"
CLASSES = 10  # of digits
ASK_S = 60  # between looks at a run's status: every one is a new process of Flower's command
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    "NO_COLOR": "1",
    "PYTHONUNBUFFERED": "1",
}
CERTIFICATE = """[req]
distinguished_name = name
prompt = no
[name]
CN = localhost
[server]
basicConstraints = critical, CA:false
extendedKeyUsage = serverAuth
subjectAltName = DNS:localhost, IP:127.0.0.1
[authority]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign
"""


class LoopbackError(Exception):
    """A step that failed; the message says which and why."""


class Federation:
    """Everything that runs, in one folder.

    Args:
        folder: an empty folder.
        nodes: number of SuperNodes.
    """

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder = folder
        self.nodes = nodes
        self.port = free_port()
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def run_folder(self) -> Path:
        """The server's run folder."""
        return self.folder / "server" / "run"

    def home(self, node: int) -> Path:
        """Return the disk of a node."""
        return self.folder / f"node-{node}" / "home"

    def make_secrets(self) -> None:
        """Make an authority, the server's certificate signed by it, and one key per node."""
        (self.folder / "certificate.cnf").write_text(CERTIFICATE, "utf-8")
        new_key = "openssl req -newkey rsa:2048 -nodes -batch -config certificate.cnf"
        run(f"{new_key} -x509 -extensions authority -days 2 -subj /CN=nmoe-loopback -keyout ca.key -out ca.crt", self.folder)
        run(f"{new_key} -keyout server.key -out server.csr", self.folder)
        sign = "openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial"
        run(f"{sign} -days 2 -extfile certificate.cnf -extensions server -out server.crt", self.folder)
        for node in range(self.nodes):
            run(f"ssh-keygen -q -t ecdsa -b 384 -N '' -C node-{node} -f node-{node}.key", self.folder)

    def start(self) -> None:
        """Start the SuperLink, tell it the nodes' keys, and start the SuperNodes."""
        secrets = f"--ssl-ca-certfile {self.folder}/ca.crt --ssl-certfile {self.folder}/server.crt --ssl-keyfile {self.folder}/server.key"
        options = f"--host 127.0.0.1 --port {self.port} --enable-supernode-auth --disable-runtime-dependency-installation"
        self._spawn("server", f"flower-superlink {secrets} {options} --database {self.folder}/server.db")
        self._wait_for_port()
        config = f'[superlink]\ndefault = "{CONNECTION}"\n[superlink.{CONNECTION}]\n'
        config += f'address = "127.0.0.1:{self.port}"\nroot-certificates = "{self.folder}/ca.crt"\n'
        (self.folder / "user").mkdir()
        (self.folder / "user" / "config.toml").write_text(config, "utf-8")
        for node in range(self.nodes):
            self.flwr("supernode", "register", str(self.folder / f"node-{node}.key.pub"), CONNECTION, "--name", f"node-{node}")
        for node in range(self.nodes):
            place = f'partition-id={node} num-partitions={self.nodes} home="{self.home(node)}"'
            reach = f"--superlink 127.0.0.1:{self.port} --root-certificates {self.folder}/ca.crt"
            key = f"--auth-supernode-private-key {self.folder}/node-{node}.key"
            self._spawn(f"node-{node}", f"flower-supernode {reach} {key} --port {free_port()} --node-config", place)

    def flwr(self, *words: str) -> str:
        """Run Flower's command as a user of this SuperLink and return what it prints."""
        done = subprocess.run(
            [BIN / "flwr", *words], env=environment(self.folder / "user"), cwd=self.folder, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise LoopbackError(f"flwr {words[0]} failed: {(done.stdout + done.stderr).strip()}")
        return done.stdout

    def status(self, run_id: str) -> dict[str, Any]:
        """Return what the SuperLink says of a run; ``flwr run`` itself ends with 0 even when the run failed."""
        report = json.loads(self.flwr("list", CONNECTION, "--run-id", run_id, "--format", "json"))
        return dict(report["runs"][0])

    def log(self, name: str) -> str:
        """Return the last lines that a process wrote."""
        return "\n".join((self.folder / f"{name}.log").read_text("utf-8", "replace").splitlines()[-30:])

    def check_alive(self) -> None:
        """Fail when one of the processes has ended."""
        for name, process in self._running.items():
            if process.poll() is not None:
                raise LoopbackError(f"{name} ended with {process.returncode}\n{self.log(name)}")

    def stop(self) -> None:
        """End every process that was started here, and those that they started."""
        family = descendants({process.pid for process in self._running.values()})
        for process in reversed(self._running.values()):
            process.terminate()
        until = time.monotonic() + 10
        for process in self._running.values():
            try:
                process.wait(max(until - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in family | descendants(family):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def _spawn(self, name: str, command: str, *last: str) -> None:
        program, *words = command.split()
        with (self.folder / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                [BIN / program, *words, *last],
                env=environment(self.folder / name),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _wait_for_port(self) -> None:
        until = time.monotonic() + 60
        while True:
            self.check_alive()
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError as error:
                if time.monotonic() > until:
                    raise LoopbackError("the SuperLink did not open its port within 60 s") from error
                time.sleep(0.2)
            else:
                return


def environment(flower_home: Path) -> dict[str, str]:
    """Return the environment of a Flower process: its own home, nothing sent outside, nothing installed, our Python first."""
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", os.defpath)])
    return os.environ | QUIET | {"FLWR_HOME": str(flower_home), "PATH": path}


def descendants(pids: set[int]) -> set[int]:
    """Return the processes below these ones."""
    table = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [(int(pid), int(parent)) for pid, parent in (line.split() for line in table.splitlines())]
    found: set[int] = set()
    fresh = set(pids)
    while fresh:
        fresh = {pid for pid, parent in pairs if parent in fresh} - found
        found |= fresh
    return found


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(command: str, folder: Path) -> None:
    """Run one command in a folder."""
    words = shlex.split(command)
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LoopbackError(f"{words[0]} failed: {done.stderr.strip()}")


def train(federation: Federation, arguments: argparse.Namespace) -> None:
    """Submit the run and wait for its end, printing every round.

    Raises:
        LoopbackError: when it does not end well.
    """
    config = f'nodes={federation.nodes} split="shards:{-(-CLASSES // federation.nodes)}" rounds={arguments.rounds} '
    config += f'gate-rounds={arguments.gate_rounds} seed={arguments.seed} out="{federation.run_folder}"'
    submitted = federation.flwr("run", str(APP), CONNECTION, "--run-config", config, "--format", "json")
    run_id = json.loads(submitted)["run-id"]
    shown, asked = 0, time.monotonic()
    while True:
        federation.check_alive()
        metrics = federation.run_folder / "metrics.jsonl"
        lines = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()] if metrics.exists() else []
        for record in lines[shown:]:
            print(f"  {record['stage']} {record['round']}/{record['rounds']}: {record['seconds']:.1f} s", flush=True)
        shown = len(lines)
        at_the_end = bool(lines) and lines[-1]["stage"] == "bundles"
        if time.monotonic() - asked > (2 if at_the_end else ASK_S):
            report, asked = federation.status(run_id), time.monotonic()
            if str(report["status"]).startswith("finished"):
                break
        time.sleep(1)
    if report["status"] != "finished:completed":
        raise LoopbackError(f"the run is {report['status']}: {report.get('status-details', '')}\n{federation.log('server')}")


def check_bundles(federation: Federation) -> str:
    """Read every node's bundle and return the one extractor fingerprint.

    Raises:
        LoopbackError: when one is missing or damaged, they differ, or the server has one.
    """
    from nmoe.core.bundle import read_bundle
    from nmoe.core.errors import BundleError

    try:
        bundles = [read_bundle(federation.home(node) / "bundles" / f"node-{node}") for node in range(federation.nodes)]
    except BundleError as error:
        raise LoopbackError(str(error)) from error
    fingerprints = {bundle.card.extractor_fingerprint for bundle in bundles}
    if len(fingerprints) != 1:
        raise LoopbackError(f"the bundles have {len(fingerprints)} different extractors")
    if list(federation.run_folder.rglob("bundles/*/card.json")):
        raise LoopbackError("a bundle went to the server")
    return fingerprints.pop()


def bring_up_and_train(folder: Path, arguments: argparse.Namespace) -> None:
    """Do it all in a folder, and leave no process behind."""
    federation = Federation(folder, arguments.nodes)
    began = time.monotonic()
    try:
        federation.make_secrets()
        federation.start()
        print(f"SuperLink on 127.0.0.1:{federation.port} and {federation.nodes} SuperNodes: {time.monotonic() - began:.0f} s", flush=True)
        train(federation, arguments)
        print(f"bundles of {federation.nodes} nodes share extractor {check_bundles(federation)[:12]}")
    finally:
        federation.stop()
    print(f"finished:completed in {time.monotonic() - began:.0f} s")


def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    """Turn a request to end into an orderly one."""
    raise KeyboardInterrupt


def main() -> int:
    """Parse the command line and do it; return the exit code."""
    parser = argparse.ArgumentParser(description="Train the demo through a SuperLink and SuperNodes on this machine.")
    parser.add_argument("--nodes", type=int, default=2, help="SuperNodes to start")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of stage 1")
    parser.add_argument("--gate-rounds", type=int, default=2, help="rounds of stage 3")
    parser.add_argument("--seed", type=int, default=0, help="seed of every draw")
    parser.add_argument("--keep", action="store_true", help="keep the folder with logs, run folder and the nodes' homes")
    arguments = parser.parse_args()
    if not 2 <= arguments.nodes <= CLASSES:
        parser.error(f"--nodes must be between 2 and {CLASSES}, got {arguments.nodes}")
    signal.signal(signal.SIGTERM, interrupt)
    folder = Path(tempfile.mkdtemp(prefix="nmoe-loopback-"))
    try:
        bring_up_and_train(folder, arguments)
    except (LoopbackError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        if arguments.keep:
            print(f"kept {folder}")
        else:
            shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
