"""The tiny model that is pruned, and its items, made once a module."""

from pathlib import Path

import pytest
from pruning_inputs import loaded, write_inputs

from snowball.pretrained.loading import Pretrained


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, and with items to calibrate and to evaluate on."""
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def model(inputs: Path) -> Pretrained:
    return loaded(inputs)
