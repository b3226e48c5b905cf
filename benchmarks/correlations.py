"""Score against relevance of models with any correlation between them; figures and a picture.

    python benchmarks/correlations.py --out benchmarks/results/correlations

Builds a decoder for country capitals for each correlation, and measures both from its weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import snowball
from snowball.files import write_json
from snowball.presentation.figure_style import BLUE, open_axes, save
from snowball.provenance import provenance, script_command

LAYERS = 12
CORRELATIONS = (-1.0, 0.0, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for JSON and PNG")
    folder = parser.parse_args().out
    dataset = snowball.Dataset.capitals()
    found = [measured(dataset, rho) for rho in CORRELATIONS]
    origin = {**provenance(), "command": script_command()}
    content = {"figures": found, "examples": len(dataset.examples), "provenance": origin}
    write_json(folder / "correlations.json", content)
    draw(found, folder / "correlations.png")
    for one in found:
        print(f"asked {one['asked']:+.6f}  measured {one['measured']:+.9f}")


def measured(dataset: snowball.Dataset, rho: float) -> dict[str, Any]:
    model = snowball.correlated(dataset, rho, layers=LAYERS)
    seen = snowball.measure(model.decoder(), dataset)
    scores = [layer.cosine.mean for layer in seen.scores]
    relevances = [float(value) for value in seen.relevance if value is not None]
    correlation = float(np.corrcoef(scores, relevances)[0, 1])
    return {"asked": rho, "measured": correlation, "scores": scores, "relevances": relevances}


def draw(found: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.1), layout="constrained")
    for axes, one in zip(figure.subplots(1, len(found), sharey=True), found, strict=True):
        axes.scatter(one["scores"], one["relevances"], color=BLUE, zorder=3)
        for layer, point in enumerate(zip(one["scores"], one["relevances"], strict=True)):
            axes.annotate(str(layer), point, xytext=(4, 4), textcoords="offset points", fontsize=7)
        axes.set_title(f"correlation {round(one['measured'], 3) + 0.0:+.3f}", fontsize=11)
        axes.set_xlabel("cosine score of the layer")
        open_axes(axes)
        axes.margins(0.12)
    figure.axes[0].set_ylabel("accuracy-based relevance")
    save(figure, path)


if __name__ == "__main__":
    main()
