"""Streaming: bit for bit the loaded model, layer by layer as bytes come. Faults of the network are in test_deliver_fetch."""

import gc
import hashlib
import json
import threading
import time

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from nmoe.core.errors import BadFile, NmoeError
from nmoe.deliver.arriving import build_empty, weight_slots
from nmoe.deliver.delivery import delivery_of
from nmoe.deliver.pack import pack
from nmoe.deliver.stream import stream_model

NAME = "model.safetensors"


def cnn():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 40)).eval()


def attention():
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.LSTM(32, 8, batch_first=True)).eval()


class Tied(nn.Module):
    """A language model in small: a tied head, rotary-like buffer that is not saved, layers used against their order."""

    def __init__(self, words=50):
        super().__init__()
        self.head, self.embed = nn.Linear(32, words, bias=False), nn.Embedding(words, 32)
        self.late, self.early = nn.Linear(32, 32), nn.Linear(32, 32)
        self.head.weight = self.embed.weight
        self.register_buffer("phase", torch.linspace(0, 1, 32), persistent=False)

    def forward(self, ids):
        return self.head(self.late(self.early(self.embed(ids)) * self.phase.to(self.early.weight.dtype)))


def decoder():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=60, tie_word_embeddings=True, use_cache=False)).eval()


IDS = torch.arange(10).reshape(2, 5)
MODELS = {
    "cnn": (cnn, (torch.rand(2, 3, 8, 8),)),
    "attention": (attention, (torch.rand(2, 4, 32),)),
    "tied": (Tied, (IDS,)),
    "decoder": (decoder, (IDS,)),
}


def saved(model, dtype=None):
    """Return a file with a model's weights, each tied one once."""
    tensors = {}
    for slot in weight_slots(model):
        tensor = slot.tensor.detach().clone()
        tensors.setdefault(id(slot.tensor), (slot.name, tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor))
    return save(dict(tensors.values()))


def loaded(build, file):
    """Return a model that has the weights of a file, in the file's dtype, each in memory of its own as ``load_state_dict`` leaves them."""
    model = build()
    tensors, by_id = load(file), {}
    for slot in weight_slots(model):
        by_id.setdefault(id(slot.tensor), []).append(slot)
    for slots in by_id.values():
        found = next(tensors[slot.name] for slot in slots if slot.name in tensors).clone()
        value = nn.Parameter(found) if isinstance(slots[0].tensor, nn.Parameter) else found
        for slot in slots:
            setattr(slot.module, slot.key, value)
    return model


def tensor_of(output):
    if isinstance(output, tuple):
        return output[0]
    return output if isinstance(output, torch.Tensor) else output.logits


@pytest.fixture(name="server")
def one_server(faulty_server):
    return faulty_server()


@pytest.fixture(name="stream")
def streaming(server, tmp_path):
    """Give ``stream_model`` for this server and a private cache; deliveries are closed at the end."""
    models = []

    def stream(build, name=NAME, **options):
        options = {"cache_dir": tmp_path / "cache", "stall_timeout_s": 5.0, "deadline_s": 5.0, **options}
        models.append(stream_model(build, f"{server.url}/{name}", **options))
        return models[-1]

    yield stream
    for model in models:
        delivery_of(model).close()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("nmoe-")] == []


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("build", "args"), MODELS.values(), ids=MODELS)
def test_results_are_those_of_the_loaded_model(server, stream, build, args, dtype):
    server.files[NAME] = saved(build(), dtype)
    if dtype is not None:
        args = tuple(arg.to(dtype) if arg.is_floating_point() else arg for arg in args)
    with torch.inference_mode():
        wanted = tensor_of(loaded(build, server.files[NAME])(*args))
        model = stream(build)
        assert torch.equal(tensor_of(model(*args)), wanted)
        delivery_of(model).wait()
        assert torch.equal(tensor_of(model(*args)), wanted), "the finished model"
        assert not any(type(vars(module)["_parameters"]) is not dict for module in model.modules())
        requests = len(server.requests)
        assert torch.equal(tensor_of(stream(build)(*args)), wanted), "from the cache, the server asked"
        assert len(server.requests) == requests + 1
        assert torch.equal(tensor_of(stream(build, revalidate=False)(*args)), wanted), "from the cache alone"
        assert len(server.requests) == requests + 1


def test_a_sharded_checkpoint_is_one_model(server, stream, tmp_path):
    tensors = load(saved(Tied()))
    shards = {f"part-{number}.safetensors": [name] for number, name in enumerate(tensors)}
    for shard, names in shards.items():
        server.files[shard] = save({name: tensors[name] for name in names})
    server.files["model.safetensors.index.json"] = json.dumps({"weight_map": {names[0]: shard for shard, names in shards.items()}}).encode()
    wanted = loaded(Tied, save(tensors))(IDS)
    model = stream(Tied, "model.safetensors.index.json")
    assert torch.equal(model(IDS), wanted)
    delivery_of(model).wait()
    before = len(server.requests)
    assert torch.equal(stream(Tied, "model.safetensors.index.json", revalidate=False)(IDS), wanted)
    assert len(server.requests) == before
    server.files["part-0.safetensors"] = save({"another": torch.zeros(1)})
    with pytest.raises(BadFile, match="lacks tensor"):
        stream(Tied, "model.safetensors.index.json", cache_dir=tmp_path / "other")


def test_a_layer_runs_while_later_bytes_are_withheld(server, stream):
    def build():
        return nn.Sequential(*(nn.Linear(200, 200) for _ in range(4)))

    file = saved(build())
    server.files[NAME] = file
    server.holds = [len(file) - 4 * 200 * 200]  # nothing of the last layer's weights comes
    model = stream(build, example_inputs=torch.zeros(1, 200))
    ran = []
    for number, layer in enumerate(model):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
        if number == 2:
            layer.register_forward_hook(lambda *_: server.released.set())
    x = torch.rand(3, 200)
    assert torch.equal(model(x), loaded(build, file)(x))
    assert ran == [0, 1, 2, 3]
    delivery = delivery_of(model)
    assert delivery.arrived_s["0.weight"] <= delivery.arrived_s["3.weight"]
    assert delivery.needed_s["0.weight"] <= delivery.needed_s["3.weight"]


def test_a_wrong_order_costs_time_only(server, stream):
    def build():
        return nn.Sequential(*(nn.Linear(300, 300, bias=False) for _ in range(12)))

    file = saved(build())
    server.files[NAME] = file
    model = stream(build, connections=1)
    x = torch.rand(1, 300)
    wanted = loaded(build, file)
    for number in reversed(range(12)):
        assert torch.equal(model[number](x), wanted[number](x))


class Choosy(Tied):
    """Needs values to know what to compute."""

    def forward(self, ids):
        return super().forward(ids[ids.nonzero()[:, 0]])


def ended(model):
    """Wait until an order has been found, or not; end the delivery and return it."""
    delivery, until_s = delivery_of(model), time.monotonic() + 30
    while delivery.order == "module tree" and not delivery.notices and time.monotonic() < until_s:
        time.sleep(0.01)
    delivery.close()
    return delivery


def test_the_order_is_traced_or_said_to_be_unknown(server, stream, tmp_path):
    server.files[NAME] = saved(Tied(4000))
    server.holds = [len(server.files[NAME]) - 1]  # so that the download does not end before
    assert ended(stream(lambda: Tied(4000), example_inputs=IDS, cache_dir=tmp_path / "1")).order == "traced"
    first, failures = stream(lambda: Tied(4000), cache_dir=tmp_path / "2"), []
    assert delivery_of(first).order == "module tree"

    def call():
        try:
            first(IDS)
        except NmoeError as error:
            failures.append(str(error))

    caller = threading.Thread(target=call)
    caller.start()
    assert ended(first).order == "traced"
    caller.join()
    assert "closed" in failures[0]
    choosy = ended(stream(lambda: Choosy(4000), example_inputs=IDS, cache_dir=tmp_path / "3"))
    assert "could not be traced" in choosy.notices[0]
    assert choosy.order == "module tree"


def test_the_order_is_the_cards(server, stream, tmp_path):
    path = tmp_path / NAME
    path.write_bytes(saved(Tied()))
    server.files[NAME] = path.read_bytes()
    card = pack(path, build_empty(Tied), IDS)
    given = stream(Tied, cache_dir=tmp_path / "4", card=card)
    assert delivery_of(given).order == "card"
    server.files[f"{NAME}.card.json"] = card.read_bytes()
    beside = stream(Tied, cache_dir=tmp_path / "5")
    assert (delivery_of(beside).order, delivery_of(beside).notices) == ("card", [])
    assert delivery_of(stream(Tied, cache_dir=tmp_path / "6", card=False)).order == "module tree"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.update(more=torch.zeros(2)), "the model lacks tensor more"),
        (lambda tensors: tensors.pop("late.bias"), "lacks tensor late.bias of the model"),
        (lambda tensors: tensors.update({"late.bias": torch.zeros(33)}), r"late.bias of the model has shape \[32\]"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_its_header(server, stream, change, words):
    tensors = load(saved(Tied()))
    change(tensors)
    server.files[NAME] = save(tensors)
    with pytest.raises(ValueError, match=words):
        stream(Tied)
    assert server.requests == [(NAME, (0, 65536))], "nothing but the header was asked for"


def test_a_deleted_model_ends_its_download(server, stream, tmp_path):
    file = saved(Tied(4000))
    server.files[NAME], server.holds = file, [len(file) - 100]
    model = stream_model(lambda: Tied(4000), f"{server.url}/{NAME}", cache_dir=tmp_path / "c", card=False)
    delivery = delivery_of(model)
    del model
    gc.collect()
    delivery.close()
    assert not delivery.finished


def test_state_and_copies_wait_for_the_end(server, stream):
    server.files[NAME] = saved(cnn())
    model = stream(cnn)
    state = model.state_dict()
    wanted = loaded(cnn, server.files[NAME]).state_dict()
    assert list(state) == list(wanted)
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)


def test_weights_may_be_changed_without_changing_the_cache(server, stream):
    server.files[NAME] = saved(cnn())
    model = stream(cnn)
    with torch.inference_mode():
        model(torch.rand(2, 3, 8, 8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.train()(torch.rand(2, 3, 8, 8)).sum().backward()
    delivery_of(model).wait()
    again, wanted = stream(cnn, revalidate=False).state_dict(), load(server.files[NAME])
    assert all(torch.equal(again[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    "options",
    [
        {"max_bytes_per_s": 0},
        {"max_bytes_per_s": float("nan")},
        {"max_bytes_per_s": -1},
        {"stall_timeout_s": float("nan")},
        {"deadline_s": -1},
        {"connections": 0},
        {"sha256": "12"},
        {"sources": ["ftp://h/f"]},
        {"sources": ["nowhere"]},
    ],
)
def test_arguments_that_cannot_be_are_refused(server, stream, options):
    with pytest.raises(ValueError, match=r"wanted|must be above 0"):
        stream(cnn, **options)
    assert server.requests == []


def test_a_model_from_elsewhere_has_no_delivery():
    with pytest.raises(ValueError, match="stream_model"):
        delivery_of(nn.Linear(1, 1))


class Collecting(nn.Module):
    """Changes the list that it is called with."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(200, 200), nn.Linear(200, 200)

    def forward(self, x, *, seen):
        seen.append(self.first(x))
        return self.second(seen[-1]) * len(seen)


def test_tracing_shares_nothing_with_the_call(server, stream):
    file = saved(Collecting())
    server.files[NAME], server.holds = file, [len(file) - 1]
    model, seen = stream(Collecting), []
    x, delivery = torch.rand(2, 200), delivery_of(model)
    model.second.register_forward_pre_hook(lambda *_: server.released.set() if reordered(delivery) else None)
    assert torch.equal(model(x, seen=seen), loaded(Collecting, file)(x, seen=[]))
    assert [tensor.device.type for tensor in seen] == ["cpu"]
    assert delivery.order == "traced"


def reordered(delivery):
    """Wait until the order was traced."""
    until_s = time.monotonic() + 30
    while delivery.order == "module tree" and not delivery.notices and time.monotonic() < until_s:
        time.sleep(0.01)
    return True


def test_a_cache_of_keys_is_not_shared_with_tracing(server, stream):
    transformers = pytest.importorskip("transformers")
    file = saved(decoder())
    server.files[NAME], server.holds = file, [len(file) - 1]
    model, cache = stream(decoder), transformers.DynamicCache()
    delivery = delivery_of(model)
    model.model.layers[1].register_forward_pre_hook(lambda *_: server.released.set() if reordered(delivery) else None)
    with torch.no_grad():
        got = model(IDS, past_key_values=cache, use_cache=True).logits
        wanted = loaded(decoder, file)(IDS, past_key_values=transformers.DynamicCache(), use_cache=True).logits
    assert torch.equal(got, wanted)
    assert cache.get_seq_length() == IDS.shape[1]
    assert delivery.order == "traced"


def test_a_call_that_cannot_be_copied_is_not_traced(server, stream):
    class Generous(Tied):
        def forward(self, batches):
            return super().forward(next(batches))

    file = saved(Generous())
    server.files[NAME] = file
    model = stream(Generous)
    assert torch.equal(model(iter(batch for batch in [IDS])), loaded(Generous, file)(iter([IDS])))
    assert delivery_of(model).notices in ([], ["the order of execution could not be traced: TypeError"])


def test_closing_does_not_wait_for_a_silent_server(server, stream):
    server.files[NAME], server.silent = saved(Tied(4000)), True
    model = stream(lambda: Tied(4000), stall_timeout_s=30.0)
    assert server.silent_asked.wait(10)
    began_s = time.monotonic()
    delivery_of(model).close()
    assert time.monotonic() - began_s < 10


def test_a_module_kept_alone_keeps_its_download(server, tmp_path):
    file = saved(Tied(4000))
    server.files[NAME], server.holds = file, [len(file) // 2]
    model = stream_model(lambda: Tied(4000), f"{server.url}/{NAME}", cache_dir=tmp_path / "c", card=False)
    delivery, embed, early = delivery_of(model), model.embed, model.early
    del model
    gc.collect()
    server.released.set()
    wanted = loaded(lambda: Tied(4000), file)
    assert torch.equal(early(embed(IDS)), wanted.early(wanted.embed(IDS)))
    del embed, early
    gc.collect()
    delivery.close()


def test_a_model_can_be_saved_whole_while_it_comes(server, stream, tmp_path):
    server.files[NAME] = saved(Tied())
    torch.save(stream(Tied), tmp_path / "m.pt")
    again = torch.load(tmp_path / "m.pt", weights_only=False)
    assert torch.equal(again(IDS), loaded(Tied, server.files[NAME])(IDS))
    assert delivery_of(again).finished


def test_secrets_of_an_address_are_kept(server, tmp_path):
    server.files[f"{NAME}?sign=secret"] = saved(Tied())
    url = f"{server.url.replace('//', '//user:secret@')}/{NAME}?sign=secret"
    model = stream_model(Tied, url, cache_dir=tmp_path, card=False)
    delivery_of(model).wait()
    delivery_of(model).close()
    assert [path for path in tmp_path.rglob("*.json") if "secret" in path.read_text()] == []
    stream_model(Tied, url, cache_dir=tmp_path, revalidate=False)
    for wrong in (url.replace("model", "none"), url.replace("http", "ftp")):
        with pytest.raises((NmoeError, ValueError), match=server.url.rpartition("/")[2]) as refused:
            stream_model(Tied, wrong, cache_dir=tmp_path)
        assert "secret" not in str(refused.value)


def test_opening_is_tried_until_the_deadline(server, stream, tmp_path):
    server.files[NAME], server.refuses_beginnings, server.refusal_headers = saved(Tied()), True, {"Retry-After": "1"}
    server.refusals = [503, 429]
    model = stream(Tied, card=False)
    assert torch.equal(model(IDS), loaded(Tied, server.files[NAME])(IDS))
    assert "answers 503" in delivery_of(model).notices[0]
    before, server.refusals = len(server.requests), [404]
    with pytest.raises(NmoeError, match="answers 404"):
        stream(Tied, card=False, cache_dir=tmp_path / "2")
    assert len(server.requests) == before + 1, "which another try would not change"
    server.refusals, server.refusal_headers = [503], {"Retry-After": "100"}
    with pytest.raises(NmoeError, match="answers 503"):
        stream(Tied, card=False, cache_dir=tmp_path / "3")


def test_a_card_that_cannot_be_read_is_only_told(server, stream):
    server.files[NAME], server.files[f"{NAME}.card.json"] = saved(Tied()), b"{"
    model = stream(Tied)
    assert torch.equal(model(IDS), loaded(Tied, server.files[NAME])(IDS))
    assert "no card" in delivery_of(model).notices[0]


def test_a_hash_may_be_in_capitals(server, stream):
    server.files[NAME] = saved(Tied())
    model = stream(Tied, sha256=hashlib.sha256(server.files[NAME]).hexdigest().upper())
    delivery_of(model).wait()
