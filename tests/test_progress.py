import pytest

from physrep import progress
from physrep.progress import spell, track


def test_lines_off_a_terminal_say_how_long_is_left(monkeypatch, capsys):
    clock = iter([0.0, 4.0, 12.0, 13.0, 30.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert list(track("abcd", "runs")) == list("abcd")
    assert capsys.readouterr().err.splitlines() == [
        "runs: 2 of 4, 12 s, about 12 s left",
        "runs: 4 of 4, 30 s, about 0 s left",
    ]
    clock = iter([0.0, 11.0])
    assert list(track(iter("a"), "runs")) == ["a"]
    assert capsys.readouterr().err == "runs: 1, 11 s\n", "of what has no length"


@pytest.mark.parametrize(("seconds", "said"), [(40.4, "40 s"), (720, "12 min"), (5400, "90 min"), (9000, "2.5 h")])
def test_durations(seconds, said):
    assert spell(seconds) == said
