"""One type of progress: silent by default, a bar in the terminal."""

import io

import pytest
from recorded_progress import Recorded, Task
from rich.console import Console

from snowball.cli import terminal
from snowball.progress import Progress, duration_text, silent


@pytest.mark.parametrize("progress", [silent, terminal.progress_bar])
def test_errors_pass_through(progress: Progress) -> None:
    with pytest.raises(KeyboardInterrupt), progress("measuring", 10, "tokens"):
        raise KeyboardInterrupt


def test_silence_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with silent("measuring", 10, "tokens") as advance:
        advance(10)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("total", "unit", "amount"), [(20_000, "tokens", "2,000 of 20,000 tokens"), (1000, "‰", "")]
)
def test_the_bar_shows_title_amount_and_unit(
    total: int, unit: str, amount: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    console = Console(file=shown, width=120, force_terminal=True, color_system=None)
    monkeypatch.setattr(terminal, "errors", console)
    with terminal.progress_bar("measuring", total, unit) as advance:
        advance(total // 20)
        advance(total // 20)
    last = shown.getvalue().split("\r")[-1]
    assert all(text in last for text in ("measuring", " 10% ", amount)), last
    assert (" of " in last) == bool(amount)


def test_what_is_recorded() -> None:
    recorded = Recorded()
    with recorded("measuring", 3, "tokens") as advance:
        advance(1)
        advance(2)
    assert recorded.only() == Task("measuring", 3, "tokens", [1, 2], True)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "a second"),
        (1e-9, "a second"),
        (1.4, "a second"),
        (1.6, "2 s"),
        (119.4, "119 s"),
        (120, "2.0 min"),
        (599, "10.0 min"),
        (3600, "60 min"),
        (7200, "2.0 h"),
        (36000, "10 h"),
        (200_000, "2.3 days"),
        (1e9, "11574 days"),
    ],
)
def test_a_time_is_told_in_a_unit_that_fits(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
