"""Throughput and scaling at toy size, the script that runs everything, and projections by hand."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from snowball.dtypes import DType

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "gpu"
PARTS = ("metric_behaviour", "audit_throughput", "scaling", "audit_throughput_others")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module beside the benchmark, by its name."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


def run_main(monkeypatch: pytest.MonkeyPatch, module: Any, *options: object) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks/gpu/x.py", *map(str, options)])
    module.main()


def test_throughput_of_a_toy_shape(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_main(
        monkeypatch, script("audit_throughput"), "--shape", "toy", "--layers", 3, "--dtype",
        "float32", "--items", 3, "--context", 8, "--rounds", 1, "--out", tmp_path,
    )  # fmt: skip
    document = json.loads((tmp_path / "audit_throughput.json").read_text())
    (one,) = document["models"]
    assert (one["model"], one["layers"], one["engine"]["models"]) == ("toy", 3, 4)
    # Four choices of 4 tokens, the last of which is predicted and not read.
    assert one["engine"]["tokens"] == 3 * 4 * (8 + 3)
    assert one["engine"]["packed_tokens"] == 3 * (8 + 4 * 3)
    assert one["obvious_loop"]["items"] == 2
    csv = script("audit_throughput").table(document).csv()
    assert (tmp_path / "audit_throughput.csv").read_text() == csv


def test_scaling_of_a_toy_shape(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_main(
        monkeypatch, script("scaling"), "--shape", "toy", "--dtype", "float32", "--layers", 3, 4,
        "--items", 1, 2, "--context", 8, 16, "--rounds", 1, "--workers", 1, "--out", tmp_path,
    )  # fmt: skip
    document = json.loads((tmp_path / "scaling.json").read_text())
    axes = [one["axis"] for one in document["points"]]
    assert axes == ["layers"] * 2 + ["questions"] * 2 + ["tokens"] * 2 + ["workers"]
    assert document["fits"].keys() == {"layers", "questions", "tokens"}
    assert document["projected"]["paper_days"] == [1.1, 8.5]
    assert "not measured" in document["projected"]["note"]


def test_a_fit_finds_the_law_that_made_the_points(script: Any) -> None:
    points = [
        {"axis": "layers", "layers": n, "seconds": 3 + 0.5 * n * (n + 1) / 2} for n in (2, 4, 8)
    ]
    fit = script("scaling").fits(points)["layers"]
    assert (fit["a"], fit["b"]) == pytest.approx((3, 0.5))
    assert fit["largest_error"] == pytest.approx(0, abs=1e-6)


def test_a_projection_is_operations_by_the_rate(script: Any) -> None:
    point = {
        "axis": "layers", "operations": 1e12, "seconds": 1.0, "packed_tokens": 100, "items": 1,
    }  # fmt: skip
    found = script("scaling").projected([point])
    # 68.45e9 parameters in 80 layers, 2 operations each, L (L + 1) / 2 layer runs.
    operations = 2 * 68.45e9 / 80 * 4000 * 100 * 80 * 81 / 2
    assert found["audit_days"] == pytest.approx(operations / 1e12 / 86400, rel=1e-3)
    assert found["audit_days"] < found["greedy_days"] < 40 * found["audit_days"]


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("pythia-6.9b", 6.86),
        ("mistral-7b", 7.24),
        ("olmo-7b", 6.89),
        ("llama-3-8b", 8.03),
        ("llama-3-70b", 70.55),
    ],
)
def test_shapes_have_the_parameters_of_the_published_models(
    script: Any, name: str, billions: float
) -> None:
    shapes = script("shapes")
    assert shapes.parameters_of(shapes.config_of(name)) / 1e9 == pytest.approx(billions, rel=2e-3)


def test_unknown_shapes_and_sizes_are_refused(script: Any) -> None:
    shapes = script("shapes")
    with pytest.raises(shapes.ShapeError, match=r"no shape 'gpt-5': choose one of pythia"):
        shapes.config_of("gpt-5")
    with pytest.raises(shapes.ShapeError, match=r"no size hiden_size: choose of hidden_size"):
        shapes.config_of("toy", hiden_size=8)


def test_the_same_seed_makes_the_same_model(script: Any) -> None:
    shapes = script("shapes")
    one, other = (
        shapes.model_of_shape(shapes.config_of("toy"), "cpu", DType.bfloat16, seed=1)
        for _ in range(2)
    )
    assert one.dtype == DType.bfloat16.torch
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert bool((mine == theirs).all())


@pytest.mark.slow
def test_everything_at_toy_size_and_a_failed_part_stops_no_other(tmp_path: Path) -> None:
    (tmp_path / "scaling").write_text("in the way of a folder")
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHON": sys.executable,
        "DEVICE": "cpu",
        "TOY": "1",
        "PYTHONPATH": str(SCRIPTS.parents[1]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [SCRIPTS / "run_all.sh", tmp_path], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "failed: scaling (" in done.stderr
    for name in PARTS:
        assert (tmp_path / name).is_dir() == (name != "scaling"), done.stderr


def test_the_script_says_how_it_is_called() -> None:
    done = subprocess.run([SCRIPTS / "run_all.sh"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "run_all.sh OUT" in done.stderr
