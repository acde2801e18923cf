"""Plan: which experts each sample asks, of which peers, in which format, so that the answers arrive by the deadline. Pure.

Source: NMoE's gate, TopK(h W_G, k) (arXiv 2511.01743), knows nothing of links. Departure, ours: a sample takes the k experts of largest
``score + weight * log P``, where P is the probability that the expert's answer arrives in time (``links.Link.arrival``: loss, round trip,
goodput, queue). Since the gate's scores are logits, that multiplies an expert's share of the mixture by the chance to get it. P of 0.99 and
more counts as 1: while everything would arrive, the choice is the gate's alone. An expert that has almost no chance is not asked, so k
shrinks with the time that is left. Weights in the answer are the gate's: links decide who is asked, not how much is believed.

Several nodes may serve one expert. Of two drawn at random the sooner one is asked (Mitzenmacher, "The power of two choices", 2001).

A format is chosen per message: the most precise one with which the answer arrives by half the time left; else the smallest.
"""

import math
import random
from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum

import numpy as np

from nmoe.node.events import ExpertGroup
from nmoe.node.links import Link
from nmoe.node.messages import TensorFormat, reply_format, tensor_bytes

SURE, HOPELESS = 0.99, 0.05
UNKNOWN_S = 0.005  # predicted for a link nobody measured, when no other is measured either
OVERHEAD_BYTES = 128  # headers of a request and its reply, about; what numbers and scales take is exact
LOSS_TIMES = 10.0  # between replicas a lost request counts as so many answered ones; our choice
CURIOSITY = 0.05  # share of choices between replicas left to chance, so that one that was slow once is measured again; our choice
COMFORT = 0.5  # share of the time left within which a format must be predicted to arrive


class Routing(StrEnum):
    """What decides who is asked: gate and links, the gate alone, or the links alone (the last two are controls)."""

    BOTH = "both"
    GATE = "gate"
    LINK = "link"


def message_bytes(rows: int, *, in_dim: int, out_dim: int, form: TensorFormat) -> int:
    """Return about how many bytes a request of so many rows and its reply take."""
    return OVERHEAD_BYTES + tensor_bytes(rows, in_dim, form) + tensor_bytes(rows, out_dim, reply_format(form))


def pick_peer(peers: Sequence[str], links: Mapping[str, Link], *, size: int, rows: int, now_s: float, draw: random.Random) -> str:
    """Return which of the peers that serve an expert is asked: of two drawn at random the sooner one, losses counted as time lost."""
    if len(peers) == 1:
        return peers[0]
    first, second = draw.sample(peers, 2)
    first_s, second_s = (links[peer].predict_s(rows, size, now_s) for peer in (first, second))
    if first_s is None or second_s is None:
        return first if first_s is not None else second
    if draw.random() < CURIOSITY:
        return first
    first_s *= 1 + LOSS_TIMES * links[first].loss
    second_s *= 1 + LOSS_TIMES * links[second].loss
    return first if first_s <= second_s else second


def average_s(links: Sequence[Link], *, rows: int, size: int, now_s: float) -> float:
    """Return what a link never measured is taken to need: the mean over those that are measured."""
    known = [predicted for link in links if (predicted := link.predict_s(rows, size, now_s)) is not None]
    return sum(known) / len(known) if known else UNKNOWN_S


def log_arrival(probability: float) -> float:
    """Return the term added to a score: 0 when sure, minus infinity when hopeless."""
    if probability >= SURE:
        return 0.0
    return math.log(probability) if probability > HOPELESS else -math.inf


def choose(scores: np.ndarray, term: Callable[[int], float], *, k: int, routing: Routing) -> np.ndarray:
    """Return the experts of every sample, best first.

    Args:
        scores: the gate's, [rows, experts].
        term: says what an expert's links add to its score, at most 0; minus infinity when it cannot be asked.
        k: experts per sample.
        routing: what decides.

    Returns:
        [rows, k] int64, -1 where fewer can be asked.
    """
    k = min(k, scores.shape[1])
    if len(scores) == 1:
        return np.array([choose_row(scores[0].tolist(), term, k=k, routing=routing)], dtype=np.int64)
    added = np.array([term(expert) for expert in range(scores.shape[1])])
    match routing:
        case Routing.BOTH:
            joined = scores + added
        case Routing.GATE:
            joined = np.where(np.isneginf(added), -np.inf, scores)
        case Routing.LINK:
            joined = np.broadcast_to(added, scores.shape)
    best = np.argsort(-joined, axis=1, kind="stable")[:, :k]  # [rows, k]
    if not np.isneginf(added).any():
        return best
    return np.where(joined[np.arange(len(joined))[:, None], best] > -np.inf, best, -1)


def choose_row(row: list[float], term: Callable[[int], float], *, k: int, routing: Routing) -> list[int]:
    """Choose for one sample, the common case, where numpy's calls would cost more than the work.

    A term is asked for only when its expert could still be among the k best, as terms are at most 0.
    """
    k = min(k, len(row))
    if routing is Routing.LINK:
        row = [0.0] * len(row)
    joined = routing is not Routing.GATE
    best: list[tuple[float, int]] = []  # (minus the joined score, expert): a sorted list of at most k
    for expert in sorted(range(len(row)), key=row.__getitem__, reverse=True):
        if len(best) == k and -row[expert] >= best[-1][0]:
            break
        added = term(expert)
        if added > -math.inf:
            insort(best, (-row[expert] - (added if joined else 0.0), expert))
            if len(best) > k:
                best.pop()
    chosen = [expert for _, expert in best]
    return chosen if len(chosen) == k else chosen + [-1] * (k - len(chosen))


def group_by_expert(chosen: np.ndarray) -> list[ExpertGroup]:
    """Return, for every chosen expert, its rows in order and the slots they fill."""
    if len(chosen) == 1:
        return [ExpertGroup(expert, (0,), (slot,)) for slot, expert in enumerate(chosen[0].tolist()) if expert >= 0]
    flat = chosen.ravel()
    order = flat.argsort(kind="stable")  # of (row, slot) pairs, by expert and within it by row
    rows, slots = np.divmod(order, chosen.shape[1])
    groups, start = [], 0
    for expert, count in enumerate(np.bincount(flat + 1).tolist(), start=-1):
        if count:
            if expert >= 0:
                groups.append(ExpertGroup(expert, rows[start : start + count], slots[start : start + count]))
            start += count
    return groups


def mixture_weights(scores: np.ndarray, experts: np.ndarray) -> np.ndarray:
    """Return the weights [rows, k] of these experts: the softmax of their scores, renormalised over those that are there (not -1)."""
    if len(experts) == 1:
        return np.array([row_weights(scores[0].tolist(), experts[0].tolist())], dtype=np.float32)
    picked = scores[np.arange(len(scores))[:, None], experts].astype(np.float32)  # [rows, k]; -1 picks anything, and is masked
    picked[experts < 0] = -np.inf
    best_rows = picked.max(axis=1, keepdims=True)
    exponents = np.exp(picked - np.where(np.isneginf(best_rows), 0, best_rows))
    totals = exponents.sum(axis=1, keepdims=True)
    weights: np.ndarray = exponents / np.where(totals > 0, totals, 1)
    return weights


def row_weights(row: Sequence[float], experts: Sequence[int]) -> list[float]:
    """Return ``mixture_weights`` of a single sample."""
    there = [row[expert] if expert >= 0 else -math.inf for expert in experts]
    best = max(there)
    if best == -math.inf:
        return [0.0] * len(there)
    powers = [math.exp(score - best) for score in there]
    total = sum(powers)
    return [power / total for power in powers]


def choose_format(
    link: Link,
    allowed: Sequence[TensorFormat],
    *,
    rows: int,
    in_dim: int,
    out_dim: int,
    left_s: float,
    now_s: float,
) -> TensorFormat:
    """Return the format for one message over one link, of those allowed here and known to the peer, most precise first."""
    assert link.card is not None
    form = TensorFormat.FLOAT32
    for shared in allowed:
        if shared in link.card.formats:
            form = shared
            predicted = link.predict_s(rows, message_bytes(rows, in_dim=in_dim, out_dim=out_dim, form=form), now_s)
            if predicted is None or predicted <= COMFORT * left_s:
                break
    return form
