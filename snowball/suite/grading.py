"""Judges what a tool reports of the models of the known-answer suite.

A tool's report holds, for each model, any of: scores by layer (`cosine`, `cosine_last`, `angular`,
`norm_ratio`), `accuracy` by set of removed layers, `relevance` by layer, `ranking`, the layers from
the least important on, and `order`, the layers in the order in which the tool would remove them, or
the sets that are gone after each step. Null in a list says that there is no number for a layer;
what has no number at all is not measured, and what lacks some is incomplete, if all others are
right.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from snowball import criteria
from snowball.errors import SnowballError
from snowball.files import FileError, bytes_of, strict_json
from snowball.limits import OutOfResources
from snowball.suite.files import KnownAnswer
from snowball.suite.order import SAME_ACCURACY, KnownSets, prefixes, profile_of, rules_of

Verdict = Literal["right", "wrong", "failed", "incomplete", "not measured"]
# What a test, or `snowball grade`, fails for.
NOT_RIGHT: tuple[Verdict, ...] = ("wrong", "failed", "incomplete")
SCORES = tuple(
    one.name
    for one in (criteria.COSINE, criteria.COSINE_LAST, criteria.ANGULAR, criteria.NORM_RATIO)
)
QUANTITIES = (*SCORES, "accuracy", criteria.RELEVANCE.name, "ranking", "order")


class ReportError(SnowballError):
    """A tool's report that is malformed; the message names the place."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict on one quantity of one model.

    `deviation` is the largest difference from what is right: of scores and accuracies themselves
    (infinite for what is no number), of a ranking the share of pairs of layers in the wrong order,
    of an order what it leaves less than the best one, at the step that decides.
    `mistake` names the known mistake that reports the same.
    """

    model: str
    quantity: str
    verdict: Verdict
    deviation: float | None = None
    detail: str = ""
    mistake: str | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values: null for an infinite deviation, which JSON has not."""
        infinite = self.deviation == math.inf
        return asdict(self) | ({"deviation": None} if infinite else {})


@dataclass(frozen=True, slots=True)
class ToolReport:
    """What a tool reports, checked for form: `models[name][quantity]`."""

    tool: str
    version: str
    command: str
    models: Mapping[str, Mapping[str, Any]]


def read_report(path: Path) -> ToolReport:
    """Reads a tool's report.

    Raises:
        ReportError: it is missing, no JSON, has a key twice, or is not of this form.
    """
    try:
        text = bytes_of(path).removeprefix(codecs.BOM_UTF8)
        body = strict_json(text, str(path), floats=True, not_finite=True)
    except (FileError, OutOfResources) as error:
        raise ReportError(str(error)) from None
    if not isinstance(body, dict):
        raise ReportError(f"{path}: must be a JSON object with 'tool' and 'models'")
    texts = [body.get(key, "") for key in ("tool", "version", "command")]
    if not all(isinstance(text, str) for text in texts) or not texts[0]:
        raise ReportError(
            f"{path}: 'tool', 'version' and 'command' must be texts, 'tool' not empty"
        )
    models = body.get("models")
    if not isinstance(models, dict) or not all(isinstance(m, dict) for m in models.values()):
        raise ReportError(f"{path}: 'models' must be an object of objects, one for each model")
    return ToolReport(*texts, models=models)


def grade(report: ToolReport, suite: Sequence[KnownAnswer]) -> list[Finding]:
    """Judges every quantity of every model of the suite, in its order.

    Raises:
        ReportError: the report names a model or a quantity that does not exist, has values of
            another form than the quantity, or nothing that can be judged.
    """
    known = {one.name for one in suite}
    if unknown := sorted(report.models.keys() - known):
        raise ReportError(f"{report.tool}: no model {unknown[0]!r:.60} is in the suite")
    findings = [
        finding for one in suite for finding in grade_model(one, report.models.get(one.name, {}))
    ]
    if all(one.verdict == "not measured" for one in findings):
        raise ReportError(f"{report.tool}: the report has nothing that can be judged")
    return findings


def grade_model(known: KnownAnswer, reported: Mapping[str, Any]) -> list[Finding]:
    """Judges what was reported of one model; raises as `grade` does."""
    for quantity in reported:
        if quantity not in (*QUANTITIES, "error"):
            raise ReportError(
                f"{known.name}: no quantity {quantity!r:.60}; there are {', '.join(QUANTITIES)}"
            )
    if (error := reported.get("error")) is not None:
        return [Finding(known.name, "run", "failed", detail=str(error))]
    return [
        grade_quantity(known, quantity, reported[quantity])
        if quantity in reported
        else Finding(known.name, quantity, "not measured")
        for quantity in QUANTITIES
    ]


def check(known: KnownAnswer, **reported: Any) -> None:
    """Asserts that what a tool reports of one model is right: `check(known, cosine=[...])`.

    Raises:
        AssertionError: something is wrong, or a list lacks a number; it says what, by how much,
            and the mistake if known.
        ReportError: there is no such quantity, or a value has another form.
    """
    wrong = [
        one
        for one in grade_model(known, reported)
        if one.verdict in NOT_RIGHT or (one.verdict == "not measured" and one.quantity in reported)
    ]
    lines = [
        f"{one.model}: {one.quantity} is {one.verdict}: {one.detail}"
        + (f" (as if: {one.mistake})" if one.mistake else "")
        for one in wrong
    ]
    if lines:
        raise AssertionError("\n".join([*lines, f"the trap: {known.answer['trap']}"]))


def grade_quantity(known: KnownAnswer, quantity: str, value: Any) -> Finding:
    """Judges one quantity; raises as `grade` does."""
    if quantity in SCORES:
        return _grade_scores(known, quantity, value)
    graders: dict[str, Callable[[KnownAnswer, Any], Finding]] = {
        "accuracy": _grade_accuracy,
        criteria.RELEVANCE.name: _grade_relevance,
        "ranking": _grade_ranking,
        "order": _grade_order,
    }
    return graders[quantity](known, value)


def _grade_scores(known: KnownAnswer, quantity: str, value: Any) -> Finding:
    right: list[float] = known.answer["scores"][quantity]
    found = _numbers(known, quantity, value)
    differences = [
        None if a is None else abs(a - b) / max(1.0, abs(b))
        for a, b in zip(found, right, strict=True)
    ]
    tolerance = known.answer["tolerance"]["score"]
    # The angle is sqrt(2 c)/pi for a small score c, and as ill-conditioned there.
    if quantity == criteria.ANGULAR.name:
        tolerance = math.sqrt(2 * tolerance) / math.pi
    finding = _of_layers(known, quantity, found, right, differences, tolerance)
    if finding.verdict == "wrong":
        return replace(finding, mistake=_recognised(known, quantity, found))
    return finding


def _of_layers(
    known: KnownAnswer,
    quantity: str,
    found: Sequence[float | None],
    right: Sequence[float | None],
    differences: Sequence[float | None],
    tolerance: float,
) -> Finding:
    """The verdict on a number for each layer; None among the differences: there is none."""
    off = {k: _finite(one) for k, one in enumerate(differences) if one is not None}
    if not off:
        return Finding(known.name, quantity, "not measured", detail="no number of any layer")
    wrong = [layer for layer, one in off.items() if one > tolerance]
    worst = max(off, key=off.__getitem__)
    if wrong:
        detail = (
            f"{len(wrong)} of {len(off)} layers, by more than {tolerance:.2g}; layer {worst}: "
            f"reported {found[worst]:.7g}, right {right[worst]:.7g}"
        )
        return Finding(known.name, quantity, "wrong", off[worst], detail)
    if missing := [str(k) for k, one in enumerate(found) if one is None and right[k] is not None]:
        detail = f"no number of layer {', '.join(missing)}"
        return Finding(known.name, quantity, "incomplete", off[worst], detail)
    return Finding(known.name, quantity, "right", off[worst])


def _recognised(known: KnownAnswer, quantity: str, found: Sequence[float | None]) -> str | None:
    """The known mistakes that explain nearly all of the deviation: several may report the same.

    A mistake reports null where it gives NaN, and explains what is not finite there only.
    """
    given = [(layer, one) for layer, one in enumerate(found) if one is not None]

    def distance(other: Sequence[float | None], shift: int = 0) -> float:
        pairs = [(a, other[k + shift]) for k, a in given if 0 <= k + shift < len(other)]
        finite = (abs(a - b) for a, b in pairs if b is not None and math.isfinite(a))
        return max(finite, default=0.0)

    right = known.answer["scores"][quantity]
    allowed = 0.02 * distance(right)
    names = [
        one["mistake"]
        for one in known.answer["mistakes"]
        if one["quantity"] == quantity
        and all(math.isfinite(a) == (one["reports"][layer] is not None) for layer, a in given)
        and distance(one["reports"]) <= allowed
    ]
    if not names and len(given) > 2 and all(math.isfinite(a) for _, a in given):
        names = [
            f"scores of the layer {which} the one named"
            for shift, which in ((1, "after"), (-1, "before"))
            if distance(right, shift) <= allowed
        ]
    return " or ".join(names) or None


def _grade_accuracy(known: KnownAnswer, value: Any) -> Finding:
    """Sets of layers of which nothing is promised are not judged."""
    if not isinstance(value, dict) or not value:
        raise ReportError(f"{known.name}: accuracy must be an object such as {{'': 1.0, '3': 0.0}}")
    right: dict[str, float] = known.answer["accuracy"]
    for removed, number in value.items():
        if removed not in right and not _is_set_of_layers(removed, known.answer["layers"]):
            raise ReportError(
                f"{known.name}: accuracy without {removed!r:.60} has no answer; removals are "
                "written as '' (none), '2', '0,2', '3.mlp'"
            )
        _number(known, f"accuracy without {removed!r}", number)
    judged = {removed: number for removed, number in value.items() if removed in right}
    others = len(value) - len(judged)
    open_ones = f", {others} more without answer" if others else ""
    if not judged:
        return Finding(known.name, "accuracy", "not measured", detail=f"0 removals{open_ones}")
    off = {r: _finite(abs(number - right[r])) for r, number in judged.items()}
    wrong = [removed for removed, one in off.items() if one > 1e-9]
    if not wrong:
        return Finding(known.name, "accuracy", "right", 0.0, f"{len(judged)} removals{open_ones}")
    worst = max(wrong, key=off.__getitem__)
    return Finding(
        known.name,
        "accuracy",
        "wrong",
        off[worst],
        f"{len(wrong)} of {len(judged)} removals{open_ones}; without {worst or 'nothing'}: "
        f"reported {judged[worst]:.4g}, right {right[worst]:.4g}",
        _other_removal(known, judged),
    )


def _is_set_of_layers(removed: str, layers: int) -> bool:
    """Whether it names a set of layers of this model as `answer.json` would."""
    names = removed.split(",")
    numbers = [int(name) for name in names if name.isdecimal() and len(name) < 9]
    canonical = ",".join(map(str, sorted(set(numbers))))
    return bool(numbers) and removed == canonical and max(numbers) < layers


def _other_removal(known: KnownAnswer, value: Mapping[str, float]) -> str | None:
    """Whether all single removals are right for another layer than the one named, or for none."""
    right, singles = known.answer["accuracy"], [key for key in value if key.isdigit()]
    if len(singles) < 2:
        return None
    if all(value[key] == right[""] for key in value):
        return "nothing was removed"
    for shift, which in ((1, "after"), (-1, "before")):
        moved = {key: right.get(str(int(key) + shift)) for key in singles}
        if all(value[key] == moved[key] for key in singles):
            return f"the layer {which} the one named was removed"
    return None


def _grade_relevance(known: KnownAnswer, value: Any) -> Finding:
    right: list[float | None] = known.answer["relevance"]
    found = _numbers(known, "relevance", value)
    differences = [
        None if a is None or b is None else abs(a - b) for a, b in zip(found, right, strict=True)
    ]
    return _of_layers(known, criteria.RELEVANCE.name, found, right, differences, 1e-6)


def _grade_ranking(known: KnownAnswer, value: Any) -> Finding:
    """Any order within a group of equal relevance is right."""
    groups: list[list[int]] = known.answer["ranking"]
    layers = sum(map(len, groups))
    if not isinstance(value, list) or sorted(map(repr, value)) != sorted(map(repr, range(layers))):
        raise ReportError(f"{known.name}: ranking must hold each of 0..{layers - 1} once")
    rank = {layer: number for number, group in enumerate(groups) for layer in group}
    pairs = [(a, b) for i, a in enumerate(value) for b in value[i + 1 :] if rank[a] != rank[b]]
    wrong = sum(rank[a] > rank[b] for a, b in pairs)
    if not wrong:
        return Finding(known.name, "ranking", "right", 0.0)
    share = wrong / len(pairs)
    detail = f"{wrong} of {len(pairs)} pairs of layers; reported {value}, right {groups}"
    mistake = "the most important layer first" if wrong == len(pairs) else None
    return Finding(known.name, "ranking", "wrong", share, detail, mistake)


def _grade_order(known: KnownAnswer, value: Any) -> Finding:
    """Of layers one by one, the order as a whole; of sets, each against those of its size."""
    sets, one_by_one = _removed_sets(known, value)
    table = KnownSets.of(known)
    judged = [one for one in sets if one in table.accuracy]
    others = len(sets) - len(judged)
    open_ones = f", {others} more without answer" if others else ""
    if not judged:
        return Finding(known.name, "order", "not measured", detail=f"0 steps{open_ones}")
    steps = table.steps(judged)
    detail = f"{profile_of(steps)}{open_ones}"
    worst = max(steps, key=lambda step: step.short)
    if not one_by_one:
        if worst.short <= SAME_ACCURACY:
            return Finding(known.name, "order", "right", 0.0, detail)
        detail += f"; without {list(worst.removed)} falls short of {list(worst.best_sets[0])}"
        return Finding(known.name, "order", "wrong", worst.short, detail)
    if (trap := table.trap(value[: len(judged)])) is None:
        return Finding(known.name, "order", "right", 0.0, detail)
    rules = rules_of(known, value[: len(judged)])
    more = [f"{len(rules) - 3} more rules"] if len(rules) > 3 else []
    mistake = " or ".join([*rules[:3], *more]) or None
    return Finding(known.name, "order", "wrong", trap.lost, f"{detail}; {trap}", mistake)


def _removed_sets(known: KnownAnswer, value: Any) -> tuple[list[frozenset[int]], bool]:
    """The sets that are removed after each step, and whether layers were given one by one."""
    layers = range(known.answer["layers"])

    def are_layers(values: Any) -> bool:
        return (
            isinstance(values, list)
            and 0 < len(values) == len(set(map(repr, values)))
            and all(type(one) is int and one in layers for one in values)
        )

    if are_layers(value):
        return prefixes(value), True
    if isinstance(value, list) and value and all(map(are_layers, value)):
        return [frozenset(one) for one in value], False
    raise ReportError(
        f"{known.name}: order must be a list of some of the layers 0..{layers[-1]}, each at most "
        f"once, in the order in which they are removed, or of such lists, the layers that are gone "
        f"after each step, not {value!r:.60}"
    )


def _numbers(known: KnownAnswer, quantity: str, value: Any) -> list[float | None]:
    layers = known.answer["layers"]
    if not isinstance(value, list) or len(value) != layers:
        what = f"{len(value)} values" if isinstance(value, list) else repr(value)[:60]
        raise ReportError(
            f"{known.name}: {quantity} must be a list of {layers} numbers, one for each layer "
            f"(null where there is none), not {what}"
        )
    return [
        None if one is None else _number(known, f"{quantity} of layer {layer}", one)
        for layer, one in enumerate(value)
    ]


def _number(known: KnownAnswer, what: str, value: Any) -> float:
    """NaN and infinity are numbers, and wrong."""
    if type(value) not in (int, float):
        raise ReportError(f"{known.name}: {what} must be a number, not {value!r:.60}")
    try:
        return float(value)
    except OverflowError:
        raise ReportError(f"{known.name}: {what} is too large for a float") from None


def _finite(difference: float) -> float:
    """The difference, infinite if it is NaN."""
    return difference if math.isfinite(difference) else math.inf
