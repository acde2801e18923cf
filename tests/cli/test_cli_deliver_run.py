"""``nmoe deliver run`` and ``pack`` as a user meets them: failures are one line."""

import contextlib
import functools
import http.server
import io
import sys
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nmoe import cli


class Impossible(nn.Module):
    """Asks for the values of its weights while it is built."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.weight.item()


def run(*words, monkeypatch):
    """Run a command in this process; return exit code, output and error output."""
    monkeypatch.setattr(sys, "argv", ["nmoe", "deliver", *map(str, words)])
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, out.getvalue(), err.getvalue()


def test_a_card_is_packed(monkeypatch, tmp_path):
    save_file(nn.Linear(2, 2).state_dict(), tmp_path / "m.safetensors")
    code, out, _ = run("pack", tmp_path / "m.safetensors", monkeypatch=monkeypatch)
    assert (code, out) == (0, f"card {tmp_path / 'm.safetensors.card.json'}, in the order of the file\n")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            ["http://127.0.0.1:9/m.safetensors", "--model", "torch.nn:Identity", "--input", "x.npy", "--deadline-s", "0.1"],
            "cannot reach http://127.0.0.1:9/m.safetensors",
        ),
        (["m.safetensors", "--model", "torch.nn:Identity"], "an http or https address wanted, got m.safetensors"),
        (["http://h/m.safetensors", "--model", "linear"], "a model is package.module:function"),
        (["http://h/m.safetensors", "--model", "torch.nn:Identity", "--model-args", "3"], "JSON object"),
        (["http://h/m.safetensors", "--model", "torch.nn:Identity", "--max-rate", "nan"], "a rate above 0 bytes/s wanted, got nan"),
        (["http://h/m.safetensors", "--model", "torch.nn:Identity", "--deadline-s", "-1"], "deadline_s must be above 0"),
        (["http://h/m.safetensors", "--model", "torch.nn:Identity", "--output", "y.txt"], "ending in .npy"),
        (["http://h/m.safetensors", "--model", "torch.nn:Identity", "--input", "none.npy"], "cannot read none.npy"),
        (["http://h/m.safetensors", "--model", "torch.nn:Identity"], "the inputs are not those of the model: missing a required argument"),
        (["http://h/m.safetensors", "--model", "torch.nn:Linear", "--model-args", '{"a": 1}'], "torch.nn:Linear does not take these"),
        (["http://h/m.safetensors", "--model", "builtins:dict"], "build must return a torch.nn.Module, got dict"),
        (["http://h/m.safetensors", "--model", f"{__name__}:Impossible"], "the model cannot be built: RuntimeError"),
        (["http://h/m.safetensors", "--model", "torch.nn:Flatten", "--input", "x.npy", "--offline"], "is not whole in the cache"),
    ],
)
def test_failures_are_one_line(monkeypatch, tmp_path, words, reason):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.zeros((2, 3), np.float32))
    code, out, err = run("run", *words, monkeypatch=monkeypatch)
    assert (code, out) == (2, "")
    assert reason in err
    assert len(err.strip().splitlines()) == 1


def test_a_call_that_the_model_refuses_is_one_line(monkeypatch, tmp_path):
    model, handler = nn.Linear(4, 2), functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    monkeypatch.chdir(tmp_path)
    save_file(model.state_dict(), "m.safetensors")
    np.save("x.npy", np.zeros((2, 3), np.float32))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        words = ["--model", "torch.nn:Linear", "--model-args", '{"in_features": 4, "out_features": 2}', "--input", "x.npy"]
        code, out, err = run(
            "run", f"http://127.0.0.1:{server.server_port}/m.safetensors", *words, "--cache-dir", "c", monkeypatch=monkeypatch
        )
        server.shutdown()
        thread.join()
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: the model failed: RuntimeError: mat1 and mat2 shapes cannot be multiplied")
    assert "Traceback" not in err
