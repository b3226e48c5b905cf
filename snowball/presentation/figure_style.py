"""The style of every figure: colours, axes, and one PNG file, all of it or nothing."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from snowball.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Colour-blind safe (Okabe and Ito).
BLUE, SKY, GREEN, ORANGE, RED = "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00"
GREY = "#8C8C8C"

_DPI = 160


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG file as `snowball.files.atomic_file` does; raises FileError if it cannot."""
    with atomic_file(path) as partial, warnings.catch_warnings():
        # A dataset may be named in a script that the font lacks; boxes stand for it.
        warnings.filterwarnings(
            "ignore", message="Glyph .* missing from font", category=UserWarning
        )
        figure.savefig(partial, dpi=_DPI)


def open_axes(axes: Axes) -> None:
    """Draws no frame at the top and at the right."""
    axes.spines[["top", "right"]].set_visible(False)


def label_integers(axis: Axis) -> None:
    """Labels whole numbers only, such as layers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def label_log(axis: Axis, values: Float[np.ndarray, "*shape"]) -> None:
    """Labels 1, 2 and 5 of every decade where there are too few decades to label these alone."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    if np.nanmax(values) < 100 * np.nanmin(values):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FormatStrFormatter("%g"))
        axis.set_minor_formatter(NullFormatter())
