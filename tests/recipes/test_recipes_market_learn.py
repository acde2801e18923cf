"""``nmoe reproduce learned-workers``: a short run writes what it promises, and what cannot be is refused."""

import json

import numpy as np
import pytest

from nmoe.market.incentive.learners.ppo import PPO
from nmoe.recipes.market_learn import RANGES, learn_market

SMALL = PPO(width=16, num_envs=4, epochs=2, minibatches=2)


class Silent:
    def stage(self, name, done, total):
        pass


def test_the_recipe_writes_rows_curves_and_policies(tmp_path):
    arguments = {"ranges": RANGES, "seeds": 2, "retrained": 4, "brief": True, "ppo": SMALL, "command": "x", "progress": Silent()}
    found = learn_market(**arguments, episodes=8, out=tmp_path / "run", force=False)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results == found
    assert {row["method"] for row in results["rows"]} == {"mappo", "mappo untrained", "single-ppo", "single-ppo untrained"}
    metrics = {row["metric"] for row in results["rows"] if row["method"] == "mappo"}
    assert {"effort_error", "price_error", "owner_gain_retrained", "worker_gain_searched", "seconds"} <= metrics
    assert all(row["n"] == 2 and row["mean"] == pytest.approx(np.mean(row["values"])) for row in results["rows"])
    assert [len(curve["rewards"]["owners"]) for curve in results["curves"] if curve["method"] == "mappo"] == [2, 2]
    assert (tmp_path / "run" / "checkpoint" / "mappo-1" / "card.json").is_file()
    assert "| prices, mean of owners |" in (tmp_path / "run" / "results.md").read_text()
    assert (tmp_path / "run" / "figures" / "learned-workers-training.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"is not empty"):
        learn_market(**arguments, episodes=8, out=tmp_path / "run", force=False)
    with pytest.raises(ValueError, match=r"seeds must be at least 1, got 0"):
        learn_market(**(arguments | {"seeds": 0}), episodes=8, out=tmp_path / "other", force=False)
