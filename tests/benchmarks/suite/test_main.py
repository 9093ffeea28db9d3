import runpy
import sys

import pytest

from benchmarks.suite.__main__ import COMMANDS, SCRATCH, run


def test_a_document_or_its_parts(tmp_path):
    report = tmp_path / "report.json"
    report.write_text('{"a": 1, "b": 2}')
    assert run(("json.tool", str(report)), ()) == {"a": 1, "b": 2}
    assert run(("json.tool", str(report)), ("b",)) == {"b": 2}


def test_a_cache_is_empty_each_time(tmp_path, monkeypatch):
    (tmp_path / "leaves_a_file.py").write_text(
        "import json, pathlib, sys\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "print(json.dumps({'found': len(list(folder.iterdir()))}))\n"
        "(folder / 'result').touch()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert [run(("leaves_a_file", SCRATCH), ()) for _ in range(2)] == [{"found": 0}, {"found": 0}]


def test_a_benchmark_that_fails_ends_the_suite():
    with pytest.raises(SystemExit, match="python -m no_such_module ended with status 1"):
        run(("no_such_module",), ())


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # if another test imported it
@pytest.mark.parametrize("name", COMMANDS)
def test_the_commands_exist(name, monkeypatch):
    module, *rest = COMMANDS[name][0]
    subcommand = rest[:1] if module == "serve.cli" else []
    monkeypatch.setattr(sys, "argv", [module, *subcommand, "--no-such-option"])
    with pytest.raises(SystemExit) as caught:  # in this process: a new one takes seconds to import torch
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert caught.value.code == 2
