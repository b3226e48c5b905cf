"""Whatever runs on a GPU keeps its tensors there: shown on a device that is simulated."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this version of torch has no backends that are written in Python",
)
def test_nothing_is_on_the_wrong_side() -> None:
    # A backend is registered once and for all, so in a process of its own.
    script = Path(__file__).with_name("on_simulated_device.py")
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", str(script)]
    apart = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    done = subprocess.run(words, env=apart, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
