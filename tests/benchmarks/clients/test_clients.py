import json
from pathlib import Path

import pytest

from benchmarks.clients import guidellm, rows, schemathesis, vllm_bench
from benchmarks.clients.__main__ import clean, tool_template
from benchmarks.clients.sdks import CLIENTS
from benchmarks.clients.shapes import SHAPES, run_shape
from benchmarks.peers.environment import PeerError
from serve.api.generate.settings import ChatTemplate
from serve.api.messages import Dialect
from tests.serve.api.fakes import FakeEngine, fake_service, live

JUNIT = """<testsuites><testsuite>
<testcase name="POST /tokenize"/>
<testcase name="POST /v1/route">
<failure message="Server error&#10;  500"/><failure message="ST1">no message</failure>
</testcase>
<testcase name="GET /version"><error message="no reply"/></testcase>
<testcase name="Stateful tests"/>
</testsuite></testsuites>"""


def test_failures_are_read_from_the_report():
    assert schemathesis.outcome(JUNIT) == {
        "operations": 3,
        "failures": ["POST /v1/route: Server error 500", "POST /v1/route: ST1 no message", "GET /version: no reply"],
    }


def test_the_figures_of_vllms_client():
    found = dict.fromkeys(vllm_bench._FIGURES, 1.2345) | {"completed": 4, "date": "today"}
    assert vllm_bench.figures(json.dumps(found)) == dict.fromkeys(vllm_bench._FIGURES, 1.23) | {"completed": 4}


def test_a_model_that_knows_no_tools_gets_a_template_that_does(tmp_path: Path):
    file = tmp_path / "chat_template.jinja"
    assert tool_template(tmp_path).name == "tools.jinja"
    file.write_text("<|im_start|>{{ messages }}")
    chosen = tool_template(tmp_path)
    call = {"function": {"name": "f", "arguments": {"x": 1}}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2"},
    ]
    prompt = ChatTemplate(chosen.read_text()).render(messages, tools=[{"type": "function", "function": {"name": "f"}}])
    assert prompt.startswith('<|im_start|>system\nYou may call these functions:\n{"name": "f"}\nA call is <tool_call>')
    assert '<|im_start|>assistant\n<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call><|im_end|>' in prompt
    assert prompt.endswith("<|im_start|>tool\n2<|im_end|>\n<|im_start|>assistant\n")
    assert "system" not in ChatTemplate(chosen.read_text()).render(messages[:1])
    assert Dialect.of(chosen.read_text()).tools == "hermes"
    file.write_text("<|im_start|>{{ tools }}")
    assert tool_template(tmp_path) is None


def test_how_guidellms_requests_ended():
    made = {"successful": 3, "errored": 1, "incomplete": None, "total": 4}
    report = {"benchmarks": [{"scheduler_metrics": {"requests_made": made}}]}
    assert guidellm.counts(json.dumps(report)) == {"successful": 3, "errored": 1, "incomplete": 0}


@pytest.mark.parametrize(
    ("report", "good"),
    [
        ({}, True),
        ({"vllm_bench_serve": {"skipped": "no network"}, "schemathesis": {"skipped": "no network"}}, True),
        ({"vllm_bench_serve": {"failed": 0}, "schemathesis": {"failures": []}}, True),
        ({"vllm_bench_serve": {"failed": 1}}, False),
        ({"schemathesis": {"failures": ["POST /tokenize: 500"]}}, False),
        ({"guidellm": {"skipped": "no network"}}, True),
        ({"guidellm": {"guidellm": "1", "/v1/completions": {"successful": 4, "errored": 0, "incomplete": 0}}}, True),
        ({"guidellm": {"guidellm": "1", "/v1/completions": {"successful": 4, "errored": 1, "incomplete": 0}}}, False),
        ({"clients": [{"failures": []}, {"failures": [], "skipped": "no network"}]}, True),
        ({"clients": [{"failures": ["chat: 400"]}]}, False),
    ],
)
def test_what_is_clean(report, good: bool):
    assert clean(report) == good


def test_where_they_cannot_be_installed_they_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(environment, say):
        raise PeerError("pip install failed: no network")

    for module in (schemathesis, vllm_bench, guidellm):
        monkeypatch.setattr(module, "prepare", refuse)
    why = {"skipped": "pip install failed: no network"}
    assert vllm_bench.bench_serve(tmp_path, 4, print) == why
    assert guidellm.run_guidellm(tmp_path, [], 4, print) == why
    assert schemathesis.attack_document(tmp_path, 4, 0, print) == why
    monkeypatch.setattr(rows, "prepare", refuse)
    row = rows.run_client("openai", CLIENTS["openai"], "http://x", "auto", print)
    assert (row.skipped, row.calls, row.failures) == (why["skipped"], 0, ())


def test_a_row_is_read_from_what_a_script_prints():
    calls = [{"call": "chat", "error": None}, {"call": "tools", "error": "BadRequestError: no"}]
    row = rows.read_row("openai", "1.2.3", f"a warning\n{json.dumps(calls)}\n")
    assert row == rows.Row("openai", "1.2.3", 2, ("tools: BadRequestError: no",))
    assert str(row) == "openai 1.2.3: 2 calls, 1 failures\n  tools: BadRequestError: no"


def test_every_client_has_a_script_and_a_version():
    folder = Path(rows.__file__).with_name("scripts")
    assert {client.script for client in CLIENTS.values()} | {"calls.py"} == {path.name for path in folder.glob("*.py")}
    assert all(client.version for client in CLIENTS.values())


@pytest.mark.parametrize("name", SHAPES)
def test_the_recorded_bodies_are_answered(name: str):
    with live(fake_service(FakeEngine())) as url:
        row = run_shape(name, url, "sql")
    assert (row.calls, row.failures) == (1, ())
