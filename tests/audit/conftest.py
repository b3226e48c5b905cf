"""The model of the folder that a module of tests has made, loaded once."""

from pathlib import Path

import pytest

from snowball.pretrained.loading import Pretrained, load_pretrained


@pytest.fixture(scope="module")
def model(inputs: Path) -> Pretrained:
    return load_pretrained(str(inputs / "model"))
