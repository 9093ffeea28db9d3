import inspect
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.cli import main
from serve.cli.bench import command
from serve.demo.tiny import models_dir
from tests.serve.api.fakes import FakeEngine, fake_service, live

SHORT = ["--requests", "4", "--warm-up", "0", "--output-length", "3", "--prompt-length", "2-4"]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with live(fake_service(FakeEngine())) as url:
        yield url


def bench(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "latency", *arguments])
    return int(ended.value.code or 0)


def test_a_document(url: str, capsys: pytest.CaptureFixture[str]):
    assert bench(url, *SHORT, "--users", "2", "--json", "--popularity", "zipf:1") == 0
    report = json.loads(capsys.readouterr().out)
    (run,) = report["runs"]
    assert (run["users"], run["requests"], run["failed"], run["tokens"]) == (2, 4, 0, 12)
    assert run["popularity"] == "zipf"


def test_a_table_and_a_picture(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("matplotlib", reason="plots need the extra bench")
    picture = tmp_path / "tax.png"
    assert bench(url, *SHORT, "--sweep-experts", "0,1,2", "--rounds", "1", "--plot", str(picture)) == 0
    assert "by distinct experts: {0: 1.0, 1:" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    rates = tmp_path / "rates.png"
    assert bench(url, *SHORT, "--rate", "50", "--rate", "100", "--constant", "--plot", str(rates)) == 0
    assert rates.read_bytes().startswith(b"\x89PNG")


def test_prompts_of_a_file(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "hello"}\n{"prompt": "you"}\n')
    assert bench(url, *SHORT, "--prompts", str(file), "--json") == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["failed"] == 0
    file.write_text('{"prompt": "hello"}\n{"text": "you"}\n')
    assert bench(url, *SHORT, "--prompts", str(file)) == 1
    assert "line 2: not a JSON object with a field prompt" in capsys.readouterr().err


def test_a_run_without_an_answer_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert bench(f"http://127.0.0.1:{port}", *SHORT, "--experts", "a,b", "--backbone", "base") == 1
    out, err = capsys.readouterr()
    assert "4 × ConnectError" in out
    assert err.endswith("error: no request was answered\n")


def test_synthetic_prompts_fit_the_smallest_models(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The tiny demo's vocabulary has 100 tokens, and its server is what a first try measures."""
    seen = inspect.signature(command).parameters["vocabulary"].default
    tokenizer = json.loads((models_dir() / "base" / "tokenizer.json").read_text())
    assert seen <= len(tokenizer["model"]["vocab"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "1", "--users", "1"], "give --rate for an open loop or --users"),
        (["--rate", "0"], "must be more than 0"),
        (["--sweep-experts", "1,2"], "is not a list of numbers that begins with 0"),
        (["--popularity", "some"], "popularity 'some' is not"),
        (["--output-length", "0"], "length '0' is neither"),
    ],
)
def test_what_is_wrong_is_said(url: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str):
    assert bench(url, *arguments) == 1
    assert message in capsys.readouterr().err
