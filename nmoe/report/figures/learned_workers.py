"""Learning curves of recruitment: mean rewards by episode."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from nmoe.report.figures.style import BLUE, ORANGE, new_figure, styled

PANELS = {"owners": "owners, reward per slot over R", "workers": "workers, reward per slot"}


@styled
def training_figure(results: Mapping[str, Any]) -> Figure:
    """Draw what owners and workers got in each batch of MAPPO's training, a line per game.

    Args:
        results: with ``episodes`` and ``curves``: seed, method, rewards by learner.
    """
    figure = new_figure(2.8, "Mean rewards while owners and workers learn")
    panels = figure.subplots(1, 2)
    for panel, (learner, words), colour in zip(panels, PANELS.items(), (BLUE, ORANGE), strict=True):
        for curve in results["curves"]:
            if learner in curve["rewards"] and curve["method"] == "mappo":
                rewards = np.array(curve["rewards"][learner])
                episodes = np.linspace(0, results["episodes"], len(rewards) + 1)[1:]
                panel.plot(episodes, rewards, color=colour, alpha=0.75)
        panel.set_title(words)
        panel.set_xlabel("episode")
        panel.set_xlim(left=0)
    return figure
