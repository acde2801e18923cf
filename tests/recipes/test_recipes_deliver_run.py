"""``nmoe deliver run`` and ``pack``: from files of inputs to a file of outputs, over HTTP."""

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from nmoe.core.errors import BadFile
from nmoe.recipes.bench_deliver.measure import predict
from nmoe.recipes.deliver_run import deliver_pack, deliver_run, named_outputs, read_call, write_outputs
from nmoe.report.delivery_progress import DeliveryBars


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture(name="url")
def plain_server(tmp_path):
    """Serve the folder as ``python -m http.server`` does: without Range or ETag."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=tmp_path))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def run(url, tmp_path, inputs, output, *, as_json=True, model="torch.nn:Linear"):
    said, noted = [], []
    deliver_run(
        url,
        model=model,
        model_args='{"in_features": 3, "out_features": 2}',
        inputs=inputs,
        output=output,
        as_json=as_json,
        say=said.append,
        note=noted.append,
        watch=DeliveryBars,
        cache_dir=tmp_path / "cache",
    )
    return said, noted


def test_inputs_go_in_and_outputs_come_out(url, tmp_path):
    model, x = nn.Linear(3, 2), torch.rand(4, 3)
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    np.save(tmp_path / "x.npy", x.numpy())
    wanted = model(x).detach()
    said, noted = run(f"{url}/m.safetensors", tmp_path, [f"input={tmp_path / 'x.npy'}"], tmp_path / "y.safetensors")
    assert torch.equal(load_file(tmp_path / "y.safetensors")["output"], wanted)
    facts = json.loads(said[0])
    assert facts["outputs"] == {"output": {"dtype": "float32", "shape": [4, 2]}}
    assert facts["bytes"] == facts["fetched_bytes"] == 4 * 8
    assert any("does not honour Range" in line for line in noted)
    said, noted = run(f"{url}/m.safetensors", tmp_path, [str(tmp_path / "x.npy")], tmp_path / "y.npy", as_json=False)
    assert np.array_equal(np.load(tmp_path / "y.npy"), wanted.numpy())
    assert said == ["output: float32 [4, 2]"]
    assert "0.0 MB of 0.0 MB fetched" in noted[-1]


def test_a_card_is_packed_from_the_command_line_s_inputs(tmp_path):
    save_file(nn.Linear(3, 2).state_dict(), tmp_path / "m.safetensors")
    np.savez(tmp_path / "x.npz", input=np.zeros((4, 3), dtype=np.float32))
    said = []
    arguments = '{"in_features": 3, "out_features": 2}'
    deliver_pack(
        tmp_path / "m.safetensors", model="torch.nn:Linear", model_args=arguments, inputs=[str(tmp_path / "x.npz")], say=said.append
    )
    assert "order of execution" in said[0]
    card = json.loads((tmp_path / "m.safetensors.card.json").read_text())
    assert card["layers"] == [{"name": "model", "tensors": ["weight", "bias"], "bytes": 32, "flops": 12.0}]
    deliver_pack(tmp_path / "m.safetensors", model=None, model_args="{}", inputs=[], say=said.append)
    assert "order of the file" in said[1]
    with pytest.raises(ValueError, match="without a model"):
        deliver_pack(tmp_path / "m.safetensors", model=None, model_args="{}", inputs=[str(tmp_path / "x.npz")], say=said.append)


def test_inputs_are_named_or_in_order(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3))
    save_file({"mask": torch.ones(2)}, tmp_path / "b.safetensors")
    args, keywords = read_call([str(tmp_path / "a.npy"), f"x={tmp_path / 'a.npy'}", str(tmp_path / "b.safetensors")])
    assert torch.equal(args[0], torch.arange(3))
    assert set(keywords) == {"x", "mask"}
    for given, words in (
        ([f"y={tmp_path / 'b.safetensors'}"], "names of its own"),
        (["x.txt"], "ending in"),
        ([f"x={tmp_path / 'a.npy'}"] * 2, "twice"),
    ):
        with pytest.raises(ValueError, match=words):
            read_call(given)
    (tmp_path / "bad.npy").write_bytes(b"x")
    (tmp_path / "bad.safetensors").write_bytes(b"x")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    for name in ("none.npy", "bad.npy", "bad.safetensors", "objects.npy"):
        with pytest.raises(BadFile, match="cannot read"):
            read_call([str(tmp_path / name)])


def test_outputs_are_tensors_by_name(tmp_path):
    x = torch.ones(2)
    assert named_outputs((x, None, x)) == ({"output_0": x, "output_2": x}, ["output_1"])
    assert named_outputs({"logits": x, "cache": 3}) == ({"logits": x}, ["cache"])
    with pytest.raises(ValueError, match="tensors wanted"):
        named_outputs(3)
    with pytest.raises(ValueError, match=r"\.safetensors"):
        write_outputs(tmp_path / "y.npz", {"y": x.bfloat16()})
    with pytest.raises(ValueError, match="ending in"):
        write_outputs(tmp_path / "y.txt", {"y": x})
    write_outputs(tmp_path / "y.npz", {"y": x, "z": 2 * x})
    assert np.load(tmp_path / "y.npz")["z"].tolist() == [2, 2]


@pytest.mark.parametrize("arguments", ["[1]", "{", "3"])
def test_a_model_s_arguments_are_a_json_object(tmp_path, arguments):
    with pytest.raises(ValueError, match="JSON object"):
        deliver_pack(tmp_path / "m.safetensors", model="torch.nn:Linear", model_args=arguments, inputs=[], say=print)


def test_the_prediction_is_the_papers_recursion():
    sizes, touched = {"a": 10, "b": 30, "c": 5}, {"a": 0.1, "b": 2.1, "c": 3.1, "": 4.1}
    ended_s = 0.0
    for downloaded_s, compute_s in ((1.0, 2.0), (4.0, 1.0), (4.5, 1.0)):
        ended_s = max(downloaded_s, ended_s) + compute_s
    assert predict(sizes, touched, 10.0) == pytest.approx(ended_s)
    assert predict(sizes, touched, float("inf")) == pytest.approx(4.0)
