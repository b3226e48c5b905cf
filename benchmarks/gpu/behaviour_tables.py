"""What `metric_behaviour.py` shows: three tables and a figure, from its JSON document alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from epsilons import BASES, FACTOR
from executions import DEFAULT, FORMULAS, NAIVE, OURS

from snowball.presentation.figure_style import BLUE, GREEN, ORANGE, RED, open_axes, save
from snowball.presentation.sheet import Cell, Sheet

COLOURS = {"float64": BLUE, "float32": GREEN, "bfloat16": ORANGE, "float16": RED}
# Smaller errors are shown as this one.
_LEAST_ERROR = 1e-10


def lost_sheet(document: dict[str, Any]) -> Sheet:
    """From which epsilon on each dtype loses the target: its score, and its role."""
    records, rows = document["counterexamples"]["records"], []
    for basis in BASES:
        for dtype in dict.fromkeys(one["dtype"] for one in records):
            mine = [one for one in records if (one["basis"], one["dtype"]) == (basis, dtype)]
            found = (_last(mine, formula) for formula in FORMULAS)
            rows.append((basis, dtype, *found, _last_role(mine)))
    return Sheet(
        title="Down to which epsilon the target layer is found",
        headings=("basis", "dtype", *(f"score, {name}" for name in FORMULAS), "decides answers"),
        rows=tuple(rows),
        text_columns=2,
        note=f"The smallest epsilon of the sweep (down to {_least(records):.0e}) at which, and at "
        f"all larger ones, the score is within a factor of {FACTOR:g} of epsilon; or accuracy is 1 "
        "with the target and 0 without it.",
    )


def epsilon_sheet(document: dict[str, Any]) -> Sheet:
    """Every counterexample: the target's score by each formula, and both accuracies."""
    records: list[dict[str, Cell]] = []
    for one in document["counterexamples"]["records"]:
        row: dict[str, Cell] = {name: one[name] for name in ("epsilon", "basis", "dtype")}
        accuracy = one.get("accuracy", {})
        row |= {"accuracy": accuracy.get("intact")}
        row |= {"accuracy without target": accuracy.get("without_target")}
        for formula in FORMULAS:
            score = one.get("scores", {}).get(formula, {})
            row |= {
                f"score, {formula}": score.get("score"),
                f"error, {formula}": score.get("error"),
            }
            row |= {f"least, {formula}": str(score["least"]) if score else None}
        row["unavailable"] = one.get("unavailable")
        records.append(row)
    return Sheet.of("Scores of the target layer", records)


def settings_sheet(document: dict[str, Any]) -> Sheet:
    """A real checkpoint in each setting, against float64 on the CPU."""
    rows = []
    for one in document["checkpoint"]["settings"]:
        if "unavailable" in one:
            continue
        ours, naive = one["scores"][OURS], one["scores"][NAIVE]
        rows.append(
            (
                setting_name(one["setting"]),
                _short(ours["largest_error"]),
                _short(naive["largest_error"]),
                f"{naive['lost_tokens']:.1%}",
                ours["ranks_changed"],
                naive["ranks_changed"],
                _short(one["nats"]["largest"]),
                f"{one['answers_changed']} of {one['answers']}",
                _short(one["from_plain"]["nats"]),
                _short(one["rerun"]["nats"]),
            )
        )
    return Sheet(
        title="A real checkpoint, intact, in every setting",
        headings=(
            "setting", "score error, ours", "score error, naive", "tokens at or below 0, naive",
            "ranks changed, ours", "ranks changed, naive", "nats a token", "answers changed",
            "nats, to the plain setting", "nats, to a second run",
        ),
        rows=tuple(rows),
        note="Against float64 on the CPU, but for the last two columns. The largest of all layers "
        "(relative error of the mean over tokens), and of all answer choices (nats a token). "
        f"{_unavailable(document)}",
    )  # fmt: skip


def setting_name(setting: dict[str, Any]) -> str:
    """The dtype, and in which respect the setting is not the plain one."""
    respects = [setting["kernel"]] if setting["kernel"] != DEFAULT else []
    respects += ["padded left"] if setting["padding"] == "left" else []
    respects += ["TF32"] if setting["tf32"] else []
    respects += [f"batch {setting['batch']}"] if not respects else []
    return f"{setting['dtype']}, {', '.join(respects)}"


def _unavailable(document: dict[str, Any]) -> str:
    """Settings that the device refuses; the JSON document has its words."""
    names = [
        setting_name(one["setting"])
        for one in document["checkpoint"]["settings"]
        if "unavailable" in one
    ]
    return f"Refused by the device: {'; '.join(names)}." if names else ""


def removals_sheet(document: dict[str, Any]) -> Sheet:
    """Every removal of a real checkpoint in each dtype, against float64 on the CPU."""
    rows = []
    for one in document["checkpoint"]["removals"]:
        if "unavailable" in one:
            rows.append((one["dtype"], None, None, None, None, None, one["unavailable"]))
            continue
        rows.append(
            (
                one["dtype"],
                f"{one['answers_changed']} of {one['answers']}",
                f"{one['largest_accuracy_change']:.3f}",
                f"{one['layers_whose_drop_changed']} of {one['layers']}",
                _short(one["nats"]),
                f"{one['seconds']:.1f}",
                None,
            )
        )
    return Sheet(
        title="Every layer removed, in each dtype",
        headings=(
            "dtype", "answers changed", "largest change of an accuracy",
            "layers whose drop changed", "nats a token, largest", "seconds", "unavailable",
        ),
        rows=tuple(rows),
        note="Against float64 on the CPU, by the engine.",
    )  # fmt: skip


def draw(document: dict[str, Any], path: Path) -> None:
    """Error of the target's score, and accuracies with and without it, against epsilon."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    records = document["counterexamples"]["records"]
    figure = Figure(figsize=(10.5, 7.2), layout="constrained")
    axes = figure.subplots(2, len(BASES), sharex=True, sharey="row")
    for column, basis in enumerate(BASES):
        upper, lower = axes[0][column], axes[1][column]
        for dtype, colour in COLOURS.items():
            mine = [one for one in records if (one["basis"], one["dtype"]) == (basis, dtype)]
            for formula, style in ((OURS, "-"), (NAIVE, "--")):
                upper.loglog(*_errors(mine, formula), style, color=colour, marker=".", markersize=4)
            drop = [(one["epsilon"], _drop(one)) for one in mine if "accuracy" in one]
            lower.semilogx(*zip(*drop, strict=True), color=colour, marker=".", label=dtype)
        upper.axhline(FACTOR - 1, color="black", linewidth=0.7)
        upper.set_title(f"the switch in {basis}" if column == 0 else f"the same models, {basis}")
        lower.set_xlabel("epsilon, the cosine score of the target layer")
        for one in (upper, lower):
            open_axes(one)
    axes[0][0].invert_xaxis()  # shared by all
    axes[0][0].set_ylabel("relative error of its score")
    axes[1][0].set_ylabel("accuracy with it minus accuracy without it")
    styles = [
        Line2D([], [], color="black", linestyle="-", marker=".", label="ours"),
        Line2D([], [], color="black", linestyle="--", marker=".", label="1 − x·y / (|x||y|)"),
        Line2D([], [], color="black", linewidth=0.7, label="above: lost, off by a factor of 2"),
    ]
    axes[0][0].legend(handles=styles, frameon=False, loc="upper left")
    figure.suptitle("From which epsilon on does each dtype lose the target layer?")
    axes[1][0].legend(frameon=False, loc="lower left")
    save(figure, path)


def _errors(records: Sequence[dict[str, Any]], formula: str) -> tuple[list[float], list[float]]:
    """Where the error is a number, epsilons and errors."""
    pairs = [
        (one["epsilon"], max(error, _LEAST_ERROR))
        for one in records
        if (error := one.get("scores", {}).get(formula, {}).get("error")) is not None
    ]
    return [epsilon for epsilon, _ in pairs], [error for _, error in pairs]


def _drop(record: dict[str, Any]) -> float:
    return record["accuracy"]["intact"] - record["accuracy"]["without_target"]


def _last(records: Sequence[dict[str, Any]], formula: str) -> str | None:
    """The smallest epsilon down to which every score is found."""
    return _down_to(
        [(r["epsilon"], "scores" in r and r["scores"][formula]["found"]) for r in records]
    )


def _last_role(records: Sequence[dict[str, Any]]) -> str | None:
    return _down_to([(one["epsilon"], "accuracy" in one and _drop(one) == 1) for one in records])


def _down_to(found: Sequence[tuple[float, bool]]) -> str | None:
    last = None
    for epsilon, good in sorted(found, reverse=True):
        if not good:
            break
        last = f"{epsilon:.0e}"
    return last


def _least(records: Sequence[dict[str, Any]]) -> float:
    return min(one["epsilon"] for one in records)


def _short(value: float | None) -> str | None:
    return None if value is None else f"{value:.1e}"
