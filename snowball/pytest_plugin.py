"""A pytest fixture for authors of importance and pruning tools: each model of the suite in turn.

    pytest_plugins = ["snowball.pytest_plugin"]

    def test_my_scores(known_answer):
        snowball.suite.grading.check(known_answer, cosine=my_scores(known_answer.folder))

No entry point registers it: only who asks for it pays for the import of torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from snowball.suite.files import KnownAnswer

_FIXTURE = "known_answer"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("snowball")
    group.addoption(
        "--known-answer-suite",
        type=Path,
        metavar="DIR",
        help="suite that `snowball suite` wrote; by default it is written once for each run",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if _FIXTURE in metafunc.fixturenames:
        from snowball.suite.models import NAMES

        metafunc.parametrize(_FIXTURE, NAMES, indirect=True)


@pytest.fixture(scope="session")
def _known_answer_suite(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, KnownAnswer]:
    from snowball.errors import SnowballError
    from snowball.suite.files import read_suite
    from snowball.suite.writing import write_suite

    folder: Path | None = request.config.getoption("--known-answer-suite", None)
    if folder is None:
        folder = tmp_path_factory.mktemp("snowball") / "suite"
        write_suite(folder)
    try:
        return {one.name: one for one in read_suite(folder)}
    except SnowballError as error:  # once, not for every model
        pytest.exit(f"--known-answer-suite: {error}", returncode=pytest.ExitCode.USAGE_ERROR)


@pytest.fixture
def known_answer(
    request: pytest.FixtureRequest, _known_answer_suite: dict[str, KnownAnswer]
) -> KnownAnswer:
    """One model of the known-answer suite; a test that takes it runs for each of them."""
    return _known_answer_suite[request.param]
