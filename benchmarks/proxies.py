"""Every proxy of every layer of a model that fools them all; figures and a picture.

    python benchmarks/proxies.py --out benchmarks/results/proxies

Builds the decoder of `thm:proxy-blindness` for country capitals, and one for each family of proxies
that is fooled alone, and measures all proxies from their weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import snowball
from snowball.criteria import FAMILIES, Family, label_of
from snowball.files import write_json
from snowball.presentation.figure_style import BLUE, GREY, RED, open_axes, save
from snowball.provenance import provenance, script_command

LAYERS, TARGET, EPSILON = 8, 3, 1e-6


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for JSON and PNG")
    folder = parser.parse_args().out
    dataset = snowball.Dataset.capitals()
    everything = measured(dataset, FAMILIES)
    alone = {family: measured(dataset, frozenset({family})) for family in sorted(FAMILIES)}
    content = {
        "layers": LAYERS,
        "target": TARGET,
        "epsilon": EPSILON,
        "examples": len(dataset.examples),
        "all_fooled": everything,
        "one_fooled": alone,
        "provenance": {**provenance(), "command": script_command()},
    }
    write_json(folder / "proxies.json", content)
    draw(everything, folder / "proxies.png")
    print(table(everything))
    for family, found in alone.items():
        print(f"{family} alone is fooled: rank of the target {found['ranks']}")


def measured(dataset: snowball.Dataset, fooled: frozenset[Family]) -> dict[str, Any]:
    """Values by layer, and ranks of the target among the layers before the reader, 1 for least."""
    model = snowball.proxy_blind(
        dataset, layers=LAYERS, target=TARGET, epsilon=EPSILON, fooled=fooled
    )
    found = snowball.proxies(model.decoder(), dataset)
    values = found.by_name()
    return {
        "values": {name: list(one) for name, one in values.items()},
        "ranks": {name: rank(one[:-1]) for name, one in values.items()},
        "relevance": list(found.relevance),
    }


def rank(values: Sequence[float]) -> int:
    return sum(value <= values[TARGET] for value in values)


def table(found: Mapping[str, Any]) -> str:
    """The rows of the README: one for each proxy."""
    lines = [f"| proxy | {' | '.join(map(str, range(LAYERS)))} | rank of {TARGET} |"]
    lines.append("|---|" + "--:|" * (LAYERS + 1))
    for name, values in found["values"].items():
        cells = [f"**{v:.2g}**" if k == TARGET else f"{v:.2g}" for k, v in enumerate(values)]
        title = label_of(name).replace("|", "\\|")
        lines.append(f"| {title} | {' | '.join(cells)} | {found['ranks'][name]} |")
    relevances = [
        f"**{v:g}**" if k == TARGET else f"{v:g}" for k, v in enumerate(found["relevance"])
    ]
    lines.append(f"| relevance | {' | '.join(relevances)} | |")
    return "\n".join(lines)


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Each proxy of each layer in units of the least other layer, and the relevance beside it.

    Magnitude is left out: all layers but the reader differ by a thousandth in it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.1), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 1])
    rows = [(name, one) for name, one in found["values"].items() if name != "magnitude"][::-1]
    for row, (_, values) in enumerate(rows):
        least = min(value for layer, value in enumerate(values) if layer != TARGET)
        for layer, value in enumerate(values):
            # A norm that hardly changes at all stands at the edge of the axis, as an arrow.
            inside = value / least >= FLOOR
            left.scatter(
                value / least if inside else FLOOR,
                row,
                s=SIZE[layer == TARGET],
                marker="o" if inside else "<",
                color=COLOURS[layer],
                linewidths=0,
                zorder=3,
            )
    left.set_xscale("log")
    left.set_xlim(FLOOR / 2, CEILING)
    left.set_yticks(range(len(rows)), [label_of(name) for name, _ in rows], fontsize=9)
    left.set_xlabel("importance, in units of the least important other layer")
    left.grid(axis="y", color="0.92", zorder=0)
    right.bar(range(LAYERS), found["relevance"], color=COLOURS, width=0.7)
    right.set_xticks(range(LAYERS))
    right.set_xlabel("layer")
    right.set_ylabel("accuracy-based relevance")
    for axes in (left, right):
        open_axes(axes)
    for layer, label in (
        (TARGET, f"layer {TARGET}, which decides every answer"),
        (0, "other layers before the last"),
        (LAYERS - 1, "last layer, which reads"),
    ):
        left.scatter([], [], color=COLOURS[layer], s=SIZE[layer == TARGET], label=label)
    figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9)
    save(figure, path)


COLOURS = [RED if k == TARGET else GREY if k == LAYERS - 1 else BLUE for k in range(LAYERS)]
SIZE = {True: 44, False: 22}
FLOOR, CEILING = 1e-5, 3e4


if __name__ == "__main__":
    main()
