"""Signals in the first moments of a command, in processes that wait in place of the imports."""

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

PROGRAM = """if True:
    import sys, time
    from serve.cli.signals import handled_from_the_start
    with handled_from_the_start(sys.argv[1:]):
        print("begun", flush=True)
        time.sleep({seconds})
    print("over")
"""


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Heed what nohup and a shell's background jobs ignore: children inherit an ignored signal."""
    numbers = [n for n in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_IGN]
    for number in numbers:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def outcome(command: str, number: signal.Signals, seconds: float, ignored: bool = False) -> tuple[int, str]:
    """(exit status, what it still printed) of a command that is sent a signal."""
    program = PROGRAM.format(seconds=seconds)
    prepare = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" if ignored else ""
    with subprocess.Popen(
        [sys.executable, "-c", prepare + program, command], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
    return process.returncode, out


@pytest.mark.parametrize("command", ["serve", "deploy", "demo"])
def test_a_server_that_is_stopped_has_succeeded(command: str):
    assert outcome(command, signal.SIGTERM, 60) == (0, "")


def test_an_interrupt_too():
    assert outcome("serve", signal.SIGINT, 60) == (0, "")


@pytest.mark.parametrize("ignored", [False, True])
def test_a_hangup_does_not_end_a_server(ignored: bool):
    assert outcome("serve", signal.SIGHUP, 0.3, ignored) == (0, "over\n")


def test_other_commands_die_of_them():
    assert outcome("merge", signal.SIGTERM, 60) == (-signal.SIGTERM, "")


def test_the_handlers_before_come_back():
    from serve.cli.signals import handled_from_the_start

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with handled_from_the_start(["serve"]):
        assert not set(before) & {signal.getsignal(number) for number in numbers}
    assert [signal.getsignal(number) for number in numbers] == before
