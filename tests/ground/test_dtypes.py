"""Names of floating-point types, and one tolerance of scores for each."""

import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from snowball.certificates import checker
from snowball.certificates.claim_checks import SCORE_ERROR
from snowball.cli.build import BuiltDType
from snowball.dtypes import BUILT, SCORE_TOLERANCE, DType, score_tolerance


@pytest.mark.parametrize("dtype", DType)
def test_names_lead_to_torch_and_back(dtype: DType) -> None:
    assert str(dtype.torch) == f"torch.{dtype}"
    assert DType.of(dtype.torch) is dtype


def test_other_types_have_no_name() -> None:
    with pytest.raises(ValueError, match="'int64' is not a valid DType"):
        DType.of(torch.int64)


@pytest.mark.parametrize("dtype", DType)
def test_safetensors_writes_the_same_names(dtype: DType, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1, dtype=dtype.torch)}, tmp_path / "a")
    assert f'"dtype":"{dtype.safetensors}"'.encode() in (tmp_path / "a").read_bytes()


def test_the_command_line_offers_what_is_built() -> None:
    assert tuple(BuiltDType) == BUILT


def test_one_tolerance_for_checks_certificates_and_the_checker_that_runs_alone() -> None:
    assert tuple(SCORE_TOLERANCE) == BUILT
    assert [score_tolerance(dtype.torch) for dtype in BUILT] == [1e-12, 1e-5, 5e-2]
    assert SCORE_ERROR == {name: Decimal(repr(SCORE_TOLERANCE[name])) for name in BUILT}
    assert {name: float(score) for name, (score, _) in checker.ERRORS.items()} == SCORE_TOLERANCE


def test_names_need_no_torch() -> None:
    code = "import sys, snowball.dtypes; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
