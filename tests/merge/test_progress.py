import pytest

from merge.progress import Progress


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress()
    with shown.stage("experts", 3) as advance:
        advance()
        shown.say("one is done")
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert lines[:2] == ["experts: 0 of 3", "one is done"]
    assert lines[2].startswith("experts: done in ")
    assert not out


def test_long_stages_say_how_far_they_are(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.0, 20.0, 40.0, 60.0, 80.0, 80.0])
    monkeypatch.setattr("merge.progress.time.perf_counter", lambda: next(seconds))
    with Progress().stage("expert sql", 4) as advance:
        for _ in range(4):
            advance()
    assert capsys.readouterr().err.splitlines() == [
        "expert sql: 0 of 4",
        "expert sql: 2 of 4, about 40 s left",
        "expert sql: done in 80.0 s",
    ]


def test_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merge.progress._terminal", lambda: True)
    with Progress().stage("experts", 2) as advance:
        advance()
        advance()
    err = capsys.readouterr().err
    assert "\r" in err
    assert "0 of 2\n" not in err


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress(enabled=False)
    with shown.stage("experts", 1) as advance:
        advance()
        shown.say("hidden")
    assert capsys.readouterr() == ("", "")


def test_a_failed_stage_is_not_called_done(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with Progress().stage("experts", 1):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert "done" not in capsys.readouterr().err
