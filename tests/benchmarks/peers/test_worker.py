import os
import sys
from pathlib import Path

import pytest

from benchmarks.peers import PeerError, Worker

ECHO = """
import json, sys
print("a library's greeting")
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    question = json.loads(line)
    print(json.dumps({"error": "no"} if question == {"fail": 1} else {"answer": question}), flush=True)
"""


def stands_still(pid: int) -> bool:
    """Whether it is stopped, once the signal that was sent has arrived."""
    os.waitid(os.P_PID, pid, os.WSTOPPED)
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_a_worker_answers_and_stands_still_between_questions():
    with Worker("echo", [sys.executable, "-c", ECHO]) as worker:
        pid = worker.pid
        assert worker.ask({"a": [1]}) == {"answer": {"a": [1]}}
        assert stands_still(pid)
        assert worker.ask({"b": 2}) == {"answer": {"b": 2}}
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_error_is_named():
    with Worker("echo", [sys.executable, "-c", ECHO]) as worker, pytest.raises(PeerError, match="echo: no"):
        worker.ask({"fail": 1})


def test_a_worker_that_ends_says_its_last_line():
    with pytest.raises(PeerError, match="broken ended with status 1: ValueError: no model"):
        Worker("broken", [sys.executable, "-c", "raise ValueError('no model')"])


def test_an_environment_gets_variables():
    script = "import json, os; print(json.dumps({'x': os.environ['OT_X']}), flush=True); input()"
    with Worker("variables", [sys.executable, "-c", script], {"OT_X": "1"}) as worker:
        assert worker.pid > 0
