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


def test_the_commands_exist():
    for name, (command, _) in COMMANDS.items():
        with pytest.raises(SystemExit, match="ended with status 2"):
            run((*command[:2], "--no-such-option") if command[0] == "serve.cli" else (command[0], "--no-such"), ())
        assert name
