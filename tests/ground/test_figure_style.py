"""One style of figures, each written whole or not at all."""

import os
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from snowball.files import FileError
from snowball.presentation.figure_style import label_integers, label_log, open_axes, save


def test_a_figure_is_one_png_file(tmp_path: Path) -> None:
    save(Figure((2, 1)), tmp_path / "new" / "a.png")
    assert imread(tmp_path / "new" / "a.png").shape == (160, 320, 4)
    assert os.listdir(tmp_path / "new") == ["a.png"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_figure_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    (tmp_path / "a.png").write_bytes(b"old")

    def write_half(figure: Figure, path: Path, **_: object) -> None:
        path.write_bytes(b"\x89PNG")
        raise error

    monkeypatch.setattr(Figure, "savefig", write_half)
    with pytest.raises(error):
        save(Figure(), tmp_path / "a.png")
    assert os.listdir(tmp_path) == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"old"


def test_a_figure_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(FileError, match=r"cannot write .*a\.png"):
        save(Figure((1, 1)), tmp_path / "a.png")
    assert os.listdir(tmp_path) == ["a.png"]


def test_missing_glyphs_are_boxes(tmp_path: Path) -> None:
    figure = Figure((2, 1))
    figure.suptitle("数据")
    save(figure, tmp_path / "a.png")


def test_axes() -> None:
    axes = Figure().subplots()
    open_axes(axes)
    assert [axes.spines[side].get_visible() for side in ("top", "right", "left")] == [0, 0, 1]
    axes.set_xlim(0, 2)
    label_integers(axes.xaxis)
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


@pytest.mark.parametrize(("values", "ticks"), [([0.2, 3], [0.2, 0.5, 1, 2]), ([1, 1e4], [10, 100])])
def test_few_decades_are_labelled_at_1_2_and_5(values: list[float], ticks: list[float]) -> None:
    axes = Figure().subplots()
    axes.set_xscale("log")
    axes.set_xlim(*values)
    label_log(axes.xaxis, np.array(values))
    assert set(ticks) <= {round(float(tick), 9) for tick in axes.get_xticks()}
