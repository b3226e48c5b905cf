"""Hypothesis profiles, chosen by HYPOTHESIS_PROFILE, and shape checks of the numerical modules."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

CHECKED = (
    "snowball.metrics",
    "snowball.construction.gadgets",
    "snowball.construction.reader.fingerprint",
    "snowball.construction.reader.prefix_tree",
    "snowball.construction.reader.answer_codes",
    "snowball.decoders.decoder",
    "snowball.results.correlation",
    "snowball.results.intervals",
    "snowball.results.paired",
    "snowball.results.ranks",
    "snowball.results.relevance",
)

# Every call into these modules checks the shapes and dtypes that its annotations promise.
install_import_hook(list(CHECKED), "beartype.beartype")

# The models of the tests are too small to share one matrix product between cores.
torch.set_num_threads(1)

# Building and running a model is slow on purpose, and no fault of a strategy.
_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("default", deadline=None, max_examples=25, suppress_health_check=_SLOW)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True, print_blob=True)
settings.register_profile("nightly", settings.get_profile("default"), max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture
def checked_modules() -> tuple[str, ...]:
    return CHECKED


@pytest.fixture(scope="session")
def suite_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The known-answer suite, written once for all tests that read it."""
    from snowball.suite.writing import write_suite

    folder = tmp_path_factory.mktemp("known") / "suite"
    write_suite(folder)
    return folder
