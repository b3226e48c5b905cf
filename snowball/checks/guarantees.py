"""The guarantees of Theorem 1, judged on measurements."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from snowball.construction.reader.reader_constants import LEAST_PROBABILITY
from snowball.dtypes import score_tolerance
from snowball.measurement.measurements import Measurements


@dataclass(frozen=True, slots=True)
class Guarantee:
    """One clause of the theorem, what was measured for it, and whether that satisfies it.

    A clause that the theorem does not claim here (`claimed` false) cannot fail.
    """

    clause: str
    statement: str
    measured: str
    holds: bool
    claimed: bool = True


def guarantees(
    found: Measurements,
    epsilon: float,
    target: int,
    dtype: torch.dtype,
    reading_layers: int = 1,
) -> tuple[Guarantee, ...]:
    """Judges clauses (a) to (e) of Theorem 1, and (f), which this construction adds.

    The last `reading_layers` layers read the answer out, so that (f) says nothing of them.

    Source: arXiv 2605.14075, Theorem 1. Proof of (a) to (e): thm:snowball, thm:architectures.
    """
    return (
        _score_is_epsilon(found, epsilon, target, dtype),
        _others_score_more(found, epsilon, target),
        _right_with_target(found),
        _wrong_without_target(found, target),
        _divergence_grows(found, epsilon, target),
        _others_do_not_matter(found, target, reading_layers),
    )


def _score_is_epsilon(
    found: Measurements, epsilon: float, target: int, dtype: torch.dtype
) -> Guarantee:
    score = found.scores[target].cosine
    worst = max(abs(score.least / epsilon - 1), abs(score.largest / epsilon - 1))
    allowed = score_tolerance(dtype)
    return Guarantee(
        "a",
        f"layer {target} scores {epsilon:g} at every token",
        f"largest relative deviation {worst:.1e} over {found.tokens} tokens (allowed {allowed:g})",
        worst <= allowed,
    )


def _others_score_more(found: Measurements, epsilon: float, target: int) -> Guarantee:
    others = {k: s.cosine.least for k, s in enumerate(found.scores) if k != target}
    lowest = min(others, key=others.__getitem__)
    own = found.scores[target].cosine.largest
    return Guarantee(
        "b",
        f"every other layer scores more than layer {target}, at every token",
        f"least score of another: {others[lowest]:.6g} (layer {lowest}), largest of layer "
        f"{target}: {own:.6g}",
        others[lowest] > max(own, epsilon),
    )


def _right_with_target(found: Measurements) -> Guarantee:
    intact = found.intact
    return Guarantee(
        "c",
        "all layers present: every answer is right",
        f"accuracy {intact.accuracy:.6g}, labels emitted {intact.emits_label:.6g}, least "
        f"probability of a right token {intact.least_probability_label:.4f}",
        intact.accuracy == 1
        and intact.emits_label == 1
        and intact.least_probability_label >= LEAST_PROBABILITY,
    )


def _wrong_without_target(found: Measurements, target: int) -> Guarantee:
    without = found.without[target]
    return Guarantee(
        "d",
        f"layer {target} removed: every answer is the distractor",
        f"accuracy {without.accuracy:.6g}, distractors {without.distractor_rate:.6g}, emitted "
        f"{without.emits_distractor:.6g}, least probability "
        f"{without.least_probability_distractor:.4f}",
        without.accuracy == 0
        and without.distractor_rate == 1
        and without.emits_distractor == 1
        and without.least_probability_distractor >= LEAST_PROBABILITY,
    )


def _divergence_grows(found: Measurements, epsilon: float, target: int) -> Guarantee:
    curve = found.curves[target]
    growth = curve.least_growth
    assert growth is not None, "the target is not the last layer"
    grows = growth > 1 and curve.least_final > 0.5
    return Guarantee(
        "e",
        f"the divergence caused by removing layer {target} grows at every later layer and ends "
        "above 1/2 (claimed for epsilon <= 1/2)",
        f"least growth per layer x {growth:.6g}, least final divergence "
        f"{curve.least_final:.4g}, over {curve.tokens} tokens",
        grows or epsilon > 0.5,
        claimed=epsilon <= 0.5,
    )


def _others_do_not_matter(found: Measurements, target: int, reading_layers: int) -> Guarantee:
    depth = len(found.without)
    decisive = (target, *range(depth - reading_layers, depth))
    others = {k: a.accuracy for k, a in enumerate(found.without) if k not in decisive}
    worst = min(others, key=others.__getitem__)
    *most, last = map(str, decisive)
    return Guarantee(
        "f",
        f"any layer but {', '.join(most)} and {last} removed: every answer is still right",
        f"lowest accuracy {others[worst]:.6g}, without layer {worst}",
        others[worst] == 1,
    )
