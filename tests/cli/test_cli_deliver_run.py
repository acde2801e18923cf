"""``nmoe deliver run`` and ``pack`` as a user meets them: failures are one line."""

import contextlib
import io
import sys

import pytest
from safetensors.torch import save_file
from torch import nn

from nmoe import cli


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
        (["http://127.0.0.1:9/m.safetensors", "--model", "torch.nn:Identity"], "cannot reach http://127.0.0.1:9/m.safetensors"),
        (["m.safetensors", "--model", "torch.nn:Identity"], "an http or https address wanted, got m.safetensors"),
        (["http://h/m.safetensors", "--model", "linear"], "a model is package.module:function"),
        (["http://h/m.safetensors", "--model", "torch.nn:Identity", "--model-args", "3"], "JSON object"),
        (["http://h/m.safetensors", "--model", "torch.nn:Identity", "--max-rate", "nan"], "a rate above 0 bytes/s wanted, got nan"),
        (["http://h/m.safetensors", "--model", "torch.nn:Identity", "--deadline-s", "-1"], "deadline_s must be above 0"),
        (["http://h/m.safetensors", "--model", "torch.nn:Identity", "--output", "y.txt"], "ending in .npy"),
        (["http://h/m.safetensors", "--model", "torch.nn:Identity", "--input", "none.npy"], "cannot read none.npy"),
        (["http://h/m.safetensors", "--model", "torch.nn:Identity", "--offline"], "is not whole in the cache"),
    ],
)
def test_failures_are_one_line(monkeypatch, tmp_path, words, reason):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code, out, err = run("run", *words, monkeypatch=monkeypatch)
    assert (code, out) == (2, "")
    assert reason in err
    assert len(err.strip().splitlines()) == 1
