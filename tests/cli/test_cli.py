"""The command line as a user meets it: help, and bad input as one clear line with exit code 2 and nothing half written."""

import contextlib
import dataclasses
import inspect
import io
import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nmoe import cli
from nmoe.recipes.options import TrainOptions


@pytest.fixture(autouse=True)
def threads():
    """Commands decide how many threads they take; what runs in this process must not keep it."""
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


def nmoe(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, up to and with its exit: an interpreter with torch for each of a hundred would take minutes."""
    out, errors, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["nmoe", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as left:
            cli.main()
    finally:
        sys.argv = argv
    return subprocess.CompletedProcess(words, left.value.code, out.getvalue(), errors.getvalue())


def refused(*words: str) -> str:
    """Run a command that must be refused; return its one line."""
    done = nmoe(*words)
    assert done.returncode == 2, (done.stdout, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def test_help_lists_the_commands_without_importing_torch() -> None:
    done = nmoe("--help")
    assert done.returncode == 0
    for command in ("demo", "train", "node", "mesh", "infer", "bench"):
        assert command in done.stdout
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            "import nmoe.cli, sys; print([m for m in ('torch', 'zenoh', 'flwr', 'matplotlib', 'sklearn') if m in sys.modules])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["demo", "train", "node", "mesh", "infer", "bench"])
def test_every_command_has_help(command: str) -> None:
    done = nmoe(command, "--help")
    assert done.returncode == 0
    assert "Usage:" in done.stdout
    assert "\\[" not in done.stdout


def test_defaults_of_the_command_line_are_those_of_the_options() -> None:
    wanted = {field.name: field.default for field in dataclasses.fields(TrainOptions)}
    for command in (cli.demo, cli.train):
        parameters = inspect.signature(command).parameters
        assert {name: parameters[name].default for name in wanted} == wanted
        assert parameters.keys() - wanted.keys() == {"context", "out", "force", "resume"}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["train", "--no-such-option"], 2, "No such option"),
        (["train", "--k", "11"], 2, "error: k must be between 1 and 10"),
        (["keys", "list", "nowhere"], 2, "error: "),
        (["demo", "--help"], 0, ""),
    ],
)
def test_a_process_of_its_own_ends_with_the_exit_code(words: list[str], code: int, said: str) -> None:
    done = subprocess.run([sys.executable, "-m", "nmoe", *words], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code
    assert said in done.stderr
    assert bool(said) == bool(done.stderr)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "mnist"], "a data set must be one of digits"),
        (["--data", "nowhere.npz"], "nowhere.npz"),
        (["--data", "cifar10", "--data-dir", "nowhere"], "there is no data folder"),
        (["--k", "11"], "k must be between 1 and 10"),
        (["--nodes", "5000", "--split", "iid"], "5000"),
        (["--split", "dirichlet:0"], "alpha"),
        (["--dp-epsilon", "0"], "dp epsilon must be above 0"),
        (["--snr", "-10:20"], "needs one, got -10:20 without a channel"),
        (["--channel", "rayleigh", "--snr", "20:-10"], "snr must be LOW:HIGH in dB, the lower one first, got '20:-10'"),
        (["--channel", "rayleigh", "--snr", "-10"], "snr must be LOW:HIGH in dB, got '-10'"),
        (["--channel", "nakagami"], "channel must be one of awgn, rayleigh, rician:K"),
        (["--channel", "awgn", "--transmission", "digital:1"], "1"),
    ],
)
def test_bad_training_input_is_refused_and_nothing_written(words: list[str], said: str, tmp_path: Path) -> None:
    assert said in refused("train", *words, "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def _npz(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)
    return str(path)


def test_bad_user_files_are_refused(tmp_path: Path) -> None:
    images, labels = np.zeros((20, 8, 8), np.uint8), np.arange(20, dtype=np.int64) % 2
    cases = {
        "uint8": _npz(tmp_path / "a.npz", images=images.astype(np.float32), labels=labels),
        "[N, H, W]": _npz(tmp_path / "b.npz", images=images[0], labels=labels),
        "labels": _npz(tmp_path / "c.npz", images=images, labels=labels - 1),
    }
    damaged = tmp_path / "d.npz"
    damaged.write_bytes(Path(cases["uint8"]).read_bytes()[:200])
    for said, path in cases.items():
        assert said in refused("train", "--data", path, "--nodes", "2", "--split", "iid", "--out", str(tmp_path / "run"))
    assert "d.npz" in refused("train", "--data", str(damaged), "--out", str(tmp_path / "run"))
    wrong_test = _npz(tmp_path / "e.npz", images=np.zeros((4, 9, 9), np.uint8), labels=np.arange(4, dtype=np.int64) % 2)
    good = _npz(tmp_path / "f.npz", images=images, labels=labels)
    refused("train", "--data", good, "--test", wrong_test, "--nodes", "2", "--split", "iid", "--out", str(tmp_path / "run"))
    one_class = _npz(tmp_path / "g.npz", images=images[:4], labels=np.zeros(4, np.int64))
    lacking = refused("train", "--data", good, "--test", one_class, "--nodes", "2", "--split", "shards:1", "--out", str(tmp_path / "run"))
    assert "node-1 has the classes [1]" in lacking
    assert not (tmp_path / "run").exists()


def test_run_folder_rules(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"nodes": 3}))
    assert "is not empty: give --force" in refused("train", "--out", str(tmp_path))
    assert "cannot read" in refused("train", "--resume", str(tmp_path / "nowhere"))
    assert "got --k beside it" in refused("train", "--resume", str(tmp_path), "--k", "3")
    assert "got --out beside it" in refused("demo", "--resume", str(tmp_path), "--out", str(tmp_path))
    (tmp_path / "serving.json").write_text("{}")
    assert "nmoe demo --resume" in refused("train", "--resume", str(tmp_path))


def test_a_folder_that_cannot_be_written_is_one_line() -> None:
    assert "/proc/" in refused("train", "--rounds", "1", "--out", "/proc/nowhere/run")


def test_bad_bundles_and_ports_are_refused(tmp_path: Path) -> None:
    assert "is not a bundle" in refused("node", str(tmp_path))
    (tmp_path / "card.json").write_text('{"format": 1}')
    assert "card.json is damaged" in refused("node", str(tmp_path))
    assert "holds no bundles" in refused("mesh", str(tmp_path / "run"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        free = taken.getsockname()[1]
    assert "go together, got no --tls-cert" in refused("node", str(tmp_path), "--tls-ca", "ca.pem")
    assert "there is no file" in refused("infer", "--tls-ca", "a", "--tls-cert", "b", "--tls-key", "c")
    assert "no node of mesh nmoe found" in refused("infer", "--connect", f"tcp/127.0.0.1:{free}")
    assert "count must be at least 0" in refused("infer", "--count", "-1")
    assert "deadline must be above 0" in refused("infer", "--deadline-ms", "-5")


COMMANDS = [
    "node", "infer", "router", "top", "mesh run", "mesh simulate", "keys init", "keys issue", "keys revoke", "keys list",
    "bench channel", "bench deliver-plan", "bench federate", "bench mesh", "bench node", "bench churn",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_mesh_has_help(command: str) -> None:
    done = nmoe(*command.split(), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage:" in done.stdout


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("node", "Bundle folders to serve."),
        ("mesh run", "Run folder with bundles."),
        ("bench node", "Run folder with bundles of at least three"),
        ("keys issue", "Folder of the authority."),
    ],
)
def test_help_says_what_arguments_are(command: str, said: str) -> None:
    assert said in nmoe(*command.split(), "--help").stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("node BUNDLE --format float64", "format must be auto"),
        ("node BUNDLE --http here", "an HTTP address looks like"),
        ("node BUNDLE --cpus 3-1", "a range of cores rises"),
        ("node BUNDLE --cpus 4096", "cores must be among"),
        ("node BUNDLE --workers 0", "workers must be between 1"),
        ("node BUNDLE --direct-port 99999", "direct port must be between"),
        ("node BUNDLE --listen tcp/192.0.2.1:7447", "--insecure"),
        ("node BUNDLE --listen 7447", "an endpoint looks like"),
        ("node BUNDLE --members nowhere.json", "nowhere.json"),
        ("node NOWHERE", "not a bundle"),
        ("router --listen tcp/192.0.2.1:7447", "--insecure"),
        ("router --listen here", "an endpoint looks like"),
        ("top --every 0", "every must be at least"),
        ("top --connect tcp/127.0.0.1:9", "no node found"),
        ("mesh run NOWHERE", "holds no bundles"),
        ("mesh NOWHERE", "holds no bundles"),
        ("mesh simulate --nodes 0", "nodes must be at least 1"),
        ("mesh simulate --requests 0", "requests must be at least 1"),
        ("mesh simulate --rate 0", "rate must be above 0"),
        ("mesh simulate --tail normal:1", "tail"),
        ("mesh simulate --rtt seattle", "--rtt-dir"),
        ("mesh simulate --trace nowhere.csv", "nowhere.csv"),
        ("keys issue nowhere node-0 --address 127.0.0.1", "nowhere"),
        ("keys revoke nowhere node-0", "nowhere"),
        ("keys list nowhere", "nowhere"),
        ("keys init authority --days 0", "days"),
        ("bench node NOWHERE", "holds no bundles"),
        ("bench churn --run NOWHERE", "NOWHERE"),
        ("bench mesh --turns 0", "turns must be at least 1"),
        ("bench channel --turns 0", "turns must be at least 1"),
        ("bench deliver-plan --users 1", "users must be at least 10"),
    ],
)
def test_bad_input_of_the_mesh_is_one_line(words: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "BUNDLE").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with contextlib.chdir(tmp_path):
        done = nmoe(*words.split())
    assert done.returncode == 2, (done.stdout, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert said in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_mesh_of_ten_can_be_simulated(tmp_path: Path) -> None:
    done = nmoe("mesh", "simulate", "--nodes", "10", "--requests", "200", "--json", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["nodes"] == 10
    assert (tmp_path / "out" / "results.json").is_file()
