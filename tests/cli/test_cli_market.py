"""``nmoe market auction`` as a user meets it: the contract for scripts, and bad input as one line."""

import contextlib
import io
import json
import sys
from pathlib import Path

import pytest

from nmoe import cli

SIMPLE = "id,bid,demand\na,10,1\nb,8,1\nc,6,1\nd,1,1\n"
NEEDS = """id,bid,workload,accuracy,latency_s,tasks,device_flops,uplink_bps
near,4,vgg16,0.5,0.3,1,2e10,4e7
far,4,vgg16,0.7,0.3,1,2e10,4e6
phone,1,mobilenet_v2,0.4,0.5,1,5e10,1e7
third,3,resnet50,0.7,0.3,1,2e10,4e7
fourth,2,resnet50,0.7,0.4,1,1e10,4e7
"""
USER_KEYS = {"id", "served", "unit_price", "payment", "demand", "reason", "partition", "exit"}


def nmoe(*words: object) -> tuple[int, str, str]:
    """Run a command in this process, up to and with its exit; return code, output and errors."""
    out, errors, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["nmoe", *map(str, words)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as left:
            cli.main()
    finally:
        sys.argv = argv
    return left.value.code, out.getvalue(), errors.getvalue()


def cleared(path: Path, *words: object) -> dict:
    code, out, errors = nmoe("market", "auction", path, "--json", *words)
    assert (code, errors) == (0, "")
    assert out.count("\n") == 1
    return json.loads(out, parse_constant=pytest.fail)  # neither NaN nor infinity


@pytest.fixture
def simple(tmp_path: Path) -> Path:
    path = tmp_path / "bids.csv"
    path.write_text(SIMPLE)
    return path


@pytest.fixture
def full(tmp_path: Path) -> Path:
    path = tmp_path / "needs.csv"
    path.write_text(NEEDS)
    return path


def test_the_contract_of_a_simple_market(simple):
    found = cleared(simple, "--mechanism", "aeria-ef", "--draw", "0.5")
    assert {"mechanism", "draw", "revenue", "profit", "users"} <= set(found)
    assert (found["mechanism"], found["draw"]) == ("aeria-ef", 0.5)
    assert [user["id"] for user in found["users"]] == ["a", "b", "c", "d"]
    for user in found["users"]:
        assert set(user) >= USER_KEYS
        assert user["partition"] is None
        assert user["exit"] is None
        assert user["edge_share"] is None, "there is no limit"
    # F = 18 of three winners; c^(i + u) <= 18 with c = 2, u = 0.5 is 2^3.5 = 11.31: three pay 3.77
    assert found["revenue"] == pytest.approx(2**3.5)
    assert [user["served"] for user in found["users"]] == [True, True, True, False]
    assert [user["payment"] for user in found["users"]] == pytest.approx([2**3.5 / 3] * 3 + [0])
    assert [user["reason"] for user in found["users"]] == ["served", "served", "served", "outbid"]


def test_flags_reach_the_market(simple):
    limited = cleared(simple, "--mechanism", "vcg", "--capacity", 2)
    assert [user["served"] for user in limited["users"]] == [True, True, False, False]
    assert [user["unit_price"] for user in limited["users"][:2]] == [6, 6], "the bid of the first who is not served"
    assert [user["edge_share"] for user in limited["users"]] == [0.5] * 4
    assert limited["users"][2]["winning_bid"] == pytest.approx(8)
    costly = cleared(simple, "--mechanism", "fixed-price", "--price", 7, "--unit-cost", 2)
    assert (costly["revenue"], costly["profit"]) == (14, 10)
    assert cleared(simple, "--unit-cost", 2, "--draw", 0)["users"][3]["reason"] == "below_cost"
    assert cleared(simple, "--base", 10, "--draw", 0.2) != cleared(simple, "--draw", 0.2)


def test_the_draw_comes_from_the_operating_system_unless_given(simple):
    draws = {cleared(simple)["draw"] for _ in range(3)}
    assert len(draws) == 3
    assert all(0 <= draw < 1 for draw in draws)
    first = cleared(simple)
    again = cleared(simple, "--draw", repr(first["draw"]))
    assert first == again, "the draw that is printed gives the same outcome"


def test_a_market_of_needs(full, tmp_path: Path):
    found = cleared(full, "--draw", 0.3, "--capacity", 5e11, "--mechanism", "vcg")
    users = {user["id"]: user for user in found["users"]}
    assert users["far"]["reason"] == "unservable"
    assert users["far"]["demand"] is users["far"]["partition"] is users["far"]["exit"] is users["far"]["unit_price"] is None
    assert (users["phone"]["reason"], users["phone"]["demand"]) == ("local", 0)
    assert (users["phone"]["partition"], users["phone"]["exit"]) == (7, 1)
    # 18.67 GFLOP up to the second exit and its head, in what is left of 0.3 s after 150,528 bytes at 40 Mbit/s
    assert users["near"]["demand"] == pytest.approx((18_670_288_896 + 2 * 256 * 1000) / (0.3 - 8 * 150_528 / 4e7))
    assert (users["near"]["partition"], users["near"]["exit"]) == (0, 1)
    assert users["near"]["edge_share"] == pytest.approx(users["near"]["demand"] / 5e11)


def test_own_workloads_and_providers(tmp_path: Path):
    (tmp_path / "own.toml").write_text(
        '[[workloads]]\nname = "tiny"\nlayer_flops = [1e9]\noutput_bytes = [1000, 10]\n'
        "exits = [{after_layer = 1, head_flops = 0, accuracy = 0.9}]\n"
    )
    header = "id,bid,provider,workload,accuracy,latency_s,tasks,device_flops,uplink_bps\n"
    rows = "".join(f"user {row},{9 - row},{'one' if row % 2 else 'other'},tiny,0.9,0.5,1,0,8e6\n" for row in range(8))
    (tmp_path / "bids.csv").write_text(header + rows)
    found = cleared(tmp_path / "bids.csv", "--workloads", tmp_path / "own.toml", "--draw", 0)
    assert {user["demand"] for user in found["users"]} == {1e9 / (0.5 - 1e-3)}
    assert "workload of row 1 must be one of alexnet, vgg16" in refused(tmp_path / "bids.csv")


def test_a_folder_has_everything_and_its_bids_clear_to_the_same(full, tmp_path: Path):
    words = ("--draw", 0.3, "--capacity", 1e12)
    found = cleared(full, *words, "--out", tmp_path / "market")
    assert json.loads((tmp_path / "market" / "market.json").read_text()) == found
    assert (tmp_path / "market" / "market.png").read_bytes().startswith(b"\x89PNG")
    again = cleared(tmp_path / "market" / "bids.csv", *words)
    for one, other in zip(found["users"], again["users"], strict=True):
        assert {key: one[key] for key in ("id", "served", "payment", "demand", "reason")} == {
            key: other[key] for key in ("id", "served", "payment", "demand", "reason")
        }


def test_a_person_is_told_who_and_why(full, simple, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, errors = nmoe("market", "auction", full, "--draw", 0.3)
    assert (code, errors) == (0, "")
    assert "aeria-ic: truthful for every draw" in out
    assert "draw 0.3" in out
    for word in ("near", "cut", "exit", "device meets the need alone", "no amount of edge compute"):
        assert word in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80
    assert nmoe("market", "auction", simple)[0] == 0
    assert "Sell edge compute" in nmoe("--help")[1]


def test_odd_markets_have_an_outcome(tmp_path: Path):
    path = tmp_path / "bids.csv"
    path.write_text("id,bid,demand\nalone,5,2\n")
    assert cleared(path, "--draw", 0.1)["users"][0]["reason"] == "no_price", "nobody is there to set a price"
    path.write_text(SIMPLE)
    assert {user["reason"] for user in cleared(path, "--capacity", 0)["users"]} == {"no_room"}
    path.write_text("id,bid,demand\na,5,0\nb,0,1\nc,3,inf\n")
    assert [user["reason"] for user in cleared(path)["users"]][::2] == ["local", "unservable"]
    for mechanism in ("vickrey", "rsop", "sampling-extraction", "aeria-mixture", "omniscient", "optimal-price", "aeria-ef"):
        assert cleared(path, "--mechanism", mechanism)["revenue"] == 0


def refused(*words: object) -> str:
    """Run a command that must be refused; return its one line."""
    code, out, errors = nmoe("market", "auction", *words)
    assert (code, out) == (2, "")
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    return errors


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,bid,demand\na,nan,1\n", "bid of user 'a' (row 1) must be finite and at least 0, got nan"),
        ("id,bid,demand\na,1,1\nb,-1,1\n", "bid of user 'b' (row 2) must be finite and at least 0, got -1"),
        ("id,bid,demand\na,inf,1\n", "bid of user 'a' (row 1)"),
        ("id,bid,demand\na,1,-1\n", "demand of user 'a' (row 1) must be at least 0"),
        ("id,bid,demand\na,1,nan\n", "demand of user 'a' (row 1)"),
        ("id,bid,demand\na,1,1\nb,1,1\na,2,1\n", "user 'a' is there twice, in rows 1 and 3"),
        ("id,bid,demand,provider\na,1,1,north\nb,1,1,\n", "line 3: provider should not be empty"),
        ("id,bid,demand\n,1,1\n", "row 1 has an empty id"),
        ("id,bid,demand\n", "no bids"),
        ("", "should begin with a line that names every column once, got: nothing"),
        ("id,id,bid,demand\n", "names every column once"),
        ("id,bid\na,1\n", "should have columns id, bid, demand, or id, bid, workload"),
        ("id,demand\na,1\n", "it lacks bid"),
        ("id,bid,demand\na,1\n", "line 2: 3 fields wanted as in the header, got 2"),
        ("id,bid,demand\na,much,1\n", "line 2: bid should be a number, it is 'much'"),
        ("id,bid,demand\na,,1\n", "line 2: bid should be a number, it is ''"),
        ('id,bid,demand\n"a,1,1\n', "not a table of comma-separated values"),
    ],
)
def test_bad_tables_are_one_line(tmp_path: Path, text: str, said: str):
    (tmp_path / "bids.csv").write_text(text)
    assert said in refused(tmp_path / "bids.csv")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("a,1,lenet,0.5,0.3,1,1e9,1e7", "workload of row 1 must be one of"),
        ("a,1,vgg16,1.5,0.3,1,1e9,1e7", "accuracy of row 1 must be finite and in [0, 1], got 1.5"),
        ("a,1,vgg16,0.5,0,1,1e9,1e7", "latency_s of row 1 must be finite and above 0, got 0"),
        ("a,1,vgg16,0.5,0.3,0,1e9,1e7", "tasks of row 1"),
        ("a,1,vgg16,0.5,0.3,1,-1,1e7", "device_flops of row 1 must be finite and at least 0, got -1"),
        ("a,1,vgg16,0.5,0.3,1,1e9,0", "uplink_bps of row 1"),
        ("a,nan,vgg16,0.5,0.3,1,1e9,1e7", "bid of user 'a' (row 1)"),
    ],
)
def test_bad_needs_are_one_line(tmp_path: Path, row: str, said: str):
    (tmp_path / "bids.csv").write_text(NEEDS.splitlines()[0] + "\n" + row + "\n")
    assert said in refused(tmp_path / "bids.csv")


def test_bad_flags_are_one_line(simple, tmp_path: Path):
    for words, said in (
        (("--mechanism", "magic"), "mechanism must be one of aeria-ic, aeria-ef"),
        (("--capacity", -1), "capacity must be at least 0, got -1"),
        (("--capacity", "nan"), "capacity must be at least 0, got nan"),
        (("--unit-cost", "inf"), "unit cost must be finite"),
        (("--draw", 1), "draw must be in [0, 1), got 1"),
        (("--draw", "nan"), "draw must be in [0, 1), got nan"),
        (("--base", 1), "base must be finite and above 1, got 1"),
        (("--price", 3), "takes no price"),
        (("--mechanism", "fixed-price"), "needs a price per unit"),
        (("--workloads", tmp_path / "none.toml"), "cannot read"),
        (("--out", simple), "a folder wanted"),
    ):
        assert said in refused(simple, *words)
    assert "cannot read" in refused(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes("id,bid,demand\nJosé,1,1\n".encode("latin-1"))
    assert "not a table of comma-separated values in UTF-8" in refused(tmp_path / "latin.csv")
