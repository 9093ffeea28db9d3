import dataclasses
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from serve.api import server
from serve.cli import app, main
from serve.config import ConnectionSettings, ServerSettings, TlsSettings
from tests.serve.api.bundles import write_speaking_bundle

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `overtone` in this process: (exit status, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        return (ended.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> list[ServerSettings]:
    """What `overtone serve` would serve."""
    seen: list[ServerSettings] = []
    monkeypatch.setattr(server, "run", lambda settings, **options: seen.append(settings))
    return seen


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speaking_bundle(tmp_path_factory.mktemp("speaker") / "bundle").bundle.path


def test_version(run: Run):
    code, out, err = run("--version")
    assert (code, err) == (0, "")
    assert re.fullmatch(r"overtone \S+\n", out)


def test_help_lists_the_commands(run: Run):
    code, out, _ = run("--help")
    assert code == 0
    assert {"merge", "route", "serve"} <= set(app.COMMANDS)
    for name in app.COMMANDS:
        assert re.search(rf"^  {name} ", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "command"),
        (("serv",), 2, "serv"),
        (("serve",), 2, "bundle"),
        (("serve", "b", "--prot", "1"), 2, "--prot"),
        (("serve", "b", "--port", "x"), 2, "--port"),
        (("serve", "b", "--kv-cache-bytes", "lots"), 2, "'lots' is not a size"),
        (("serve", "b", "--port", "65536"), 1, "port is 65536"),
        (("serve", "b", "--log-level", "loud"), 1, "log_level"),
        (("serve", "b", "--max-num-seqs", "0"), 1, "max_num_seqs"),
        (("serve", "b", "--max-lora-rank", "512"), 1, "it must be at most 256"),
        (("serve", "b", "--lora-modules", "a"), 2, "must be NAME=PATH"),
        (("serve", "b", "--api-key", ""), 1, "API key"),
        (("serve", "b", "--api-key-file", "nowhere"), 1, "cannot read the API keys in nowhere"),
        (("serve", "b", "--port", "0", "--expert-dir", "nowhere"), 1, "--expert-dir nowhere is not a directory"),
        (("bench",), 2, "command"),
        (("serve", "b", "--ssl-keyfile", "key"), 2, "--ssl-certfile"),
        (("serve", "b", "--request-timeout", "0"), 1, "request_timeout"),
        (("serve", "b", "--log-format", "xml"), 1, "log_format"),
        (("route", "missing", "hi"), 1, "no bundle at missing"),
        (("merge", "missing.yml", "out"), 1, "missing.yml"),
    ],
)
def test_wrong_input_is_one_line_on_stderr(run: Run, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_faults_of_the_program_keep_their_traceback(monkeypatch: pytest.MonkeyPatch):
    def broken() -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(app, "COMMANDS", {"broken": broken, "fine": lambda: None})
    with pytest.raises(KeyError):
        main(["broken"])


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1)])
def test_a_command_may_return_its_exit_status(run: Run, monkeypatch: pytest.MonkeyPatch, returned, code):
    monkeypatch.setattr(app, "COMMANDS", {"it": lambda: returned, "other": lambda: None})
    assert run("it")[0] == code


def test_an_interrupt_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch):
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "COMMANDS", {"it": interrupted, "other": lambda: None})
    code, _, err = run("it")
    assert code == 130
    assert "Traceback" not in err


def test_the_other_kernels_is_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    card = tmp_path / "kernels-0.9.0.dist-info" / "METADATA"
    card.parent.mkdir()
    card.write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.9.0\n")
    assert run("--version")[0] == 0
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    code, out, err = run("--version")
    assert (code, out) == (1, "")
    assert err.startswith("error: the package `kernels` 0.9.0 from PyPI")
    assert err.count("\n") == 1


def test_serves_defaults(run: Run, settings: list[ServerSettings]):
    assert run("serve", "somewhere")[0] == 0
    assert settings == [ServerSettings(Path("somewhere"))]


def test_an_engine_timeout_of_0_is_no_limit(run: Run, settings: list[ServerSettings]):
    assert run("serve", "somewhere", "--engine-timeout", "0")[0] == 0
    assert settings[0].api.engine_timeout is None


OPTIONS = (
    "--host 0.0.0.0 --port 9 --served-model-name one --served-model-name two "
    "--api-key k1 --api-key k2 "
    "--max-model-len 128 --max-num-seqs 8 --max-num-batched-tokens 256 --max-num-queued-reqs 3 "
    "--max-num-queued-tokens 99 --dtype float32 --device cpu --kv-cache-bytes 2MiB --expert-slots 4 "
    "--no-enable-prefix-caching --seed 7 --router-threshold 0.25 --shutdown-timeout 1.5 --log-level debug "
    "--api-key-file keys --admin-api-key a1 --admin-api-key a2 --admin-api-key-file admins --expert-dir e1 "
    "--expert-dir e2 --allowed-origins https://a.example --max-body-bytes 1MiB --max-choices 9 --log-prompts "
    "--request-timeout 60 --engine-timeout 30 --chat-template c.jinja --generation-config none --log-format json "
    "--max-expert-host-bytes 3MB --patching auto --no-ui --enforce-eager --gpu-memory-utilization 0.8 "
    "--max-choices-per-key 50 --root-path /llm --allow-priority "
    "--body-timeout 5 --keep-alive-timeout 90 --max-header-bytes 8KiB "
    "--tool-call-parser hermes --reasoning-parser qwen3 --sse-ping-seconds 3"
)
LORAS = "--enable-lora --max-lora-rank 32 --router r --lora-modules sql=loras/sql poetry=loras/poetry"
ON_ENGINE_DEATH = "--on-engine-death stay"
HERE = "--max-connections 9 --header-timeout 2 --write-timeout 4"  # and not under Ray, whose proxy has the connections
TLS = "--ssl-certfile cert --ssl-keyfile key --ssl-keyfile-password pw --ssl-ca-certs ca"


def test_serves_options(run: Run, settings: list[ServerSettings]):
    given = (*OPTIONS.split(), *ON_ENGINE_DEATH.split(), *TLS.split(), *HERE.split(), *LORAS.split())
    assert run("serve", "somewhere", *given)[0] == 0
    (found,) = settings
    assert [(module.name, module.path) for module in found.lora_modules] == [
        ("sql", Path("loras/sql")),
        ("poetry", Path("loras/poetry")),
    ]
    assert (found.router, found.engine.enable_lora, found.engine.max_lora_rank) == (Path("r"), True, 32)
    assert found.on_engine_death == "stay"
    assert (found.host, found.port, found.served_model_names) == ("0.0.0.0", 9, ("one", "two"))
    assert (found.api.api_keys, found.router_threshold) == (("k1", "k2"), 0.25)
    assert (found.shutdown_timeout, found.log_level) == (1.5, "debug")
    api = found.api
    assert (api.api_key_file, api.admin_api_keys, api.admin_api_key_file) == (
        Path("keys"),
        ("a1", "a2"),
        Path("admins"),
    )
    assert (api.expert_dirs, api.allowed_origins) == ((Path("e1"), Path("e2")), ("https://a.example",))
    assert (api.max_body_bytes, api.max_choices, api.log_prompts) == (2**20, 9, True)
    assert (api.request_timeout, api.engine_timeout) == (60, 30)
    assert (found.chat_template, found.log_format) == (Path("c.jinja"), "json")
    assert (api.root_path, api.allow_priority, api.max_choices_per_key) == ("/llm", True, 50)
    assert (api.body_timeout, api.max_header_bytes) == (5, 8192)
    assert found.connections == ConnectionSettings(9, 2, 4, 90)
    assert found.generation_config == "none"
    assert api.sse_ping_seconds == 3
    assert (found.tool_call_parser, found.reasoning_parser) == ("hermes", "qwen3")
    assert found.tls == TlsSettings(Path("cert"), Path("key"), "pw", Path("ca"))
    engine = found.engine
    assert (engine.max_model_len, engine.max_num_seqs, engine.max_num_batched_tokens) == (128, 8, 256)
    assert (engine.max_num_queued_reqs, engine.max_num_queued_tokens) == (3, 99)
    assert (engine.dtype, engine.device, engine.kv_cache_bytes) == ("float32", "cpu", 2 * 2**20)
    assert (engine.max_expert_slots, engine.enable_prefix_caching, engine.seed) == (4, False, 7)
    assert (engine.max_expert_host_bytes, engine.patching, api.ui) == (3 * 10**6, "auto", False)
    assert (engine.enforce_eager, engine.gpu_memory_utilization) == (True, 0.8)


def test_deploys_options_are_serves(
    run: Run, settings: list[ServerSettings], bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cluster = pytest.importorskip("serve.cluster.run", reason="needs the extra ray")
    deployments: list[Any] = []
    monkeypatch.setattr(cluster, "serve_here", lambda deployment, *_: deployments.append(deployment))
    monkeypatch.chdir(tmp_path)
    for command in ("serve", "deploy"):
        assert run(command, str(bundle), *OPTIONS.split())[0] == 0
    here, (deployment,) = settings[0].api, deployments
    # The cluster's processes work in other directories.
    absolute = {
        "expert_dirs": tuple(path.resolve() for path in here.expert_dirs),
        "api_key_file": tmp_path / "keys",
        "admin_api_key_file": tmp_path / "admins",
    }
    assert deployment.settings == dataclasses.replace(
        settings[0],
        bundle=bundle.resolve(),
        chat_template=tmp_path / "c.jinja",
        api=dataclasses.replace(here, **absolute),
    )


def test_every_option_of_every_command_is_a_variable():
    commands = typer.main.get_command(app._program()).commands
    for name, command in commands.items():
        options = [item for item in command.params if item.param_type_name == "option" and item.name != "help"]
        for item in options:
            flag = max(item.opts, key=len)
            assert item.envvar == "OVERTONE_" + flag.removeprefix("--").replace("-", "_").upper(), (name, flag)


def test_variables(run: Run, settings: list[ServerSettings], monkeypatch: pytest.MonkeyPatch):
    for name, value in {
        "BUNDLE": "there",
        "PORT": "81",
        "API_KEY": "k1 k2",
        "KV_CACHE_BYTES": "1GB",
        "ENABLE_PREFIX_CACHING": "false",
    }.items():
        monkeypatch.setenv(f"OVERTONE_{name}", value)
    assert run("serve", "--port", "82")[0] == 0  # the command line wins
    (found,) = settings
    assert (found.bundle, found.port, found.api.api_keys) == (Path("there"), 82, ("k1", "k2"))
    assert (found.engine.kv_cache_bytes, found.engine.enable_prefix_caching) == (10**9, False)


def test_route(run: Run, bundle: Path):
    code, out, _ = run("route", str(bundle), "SELECT name FROM table")
    assert code == 0
    assert out.splitlines()[0].startswith("sql  ")
    code, out, _ = run("route", str(bundle), "SELECT name FROM table", "--json")
    decision = json.loads(out)
    assert decision["expert"] == "sql"
    assert list(decision["scores"]) == ["sql", "poetry"]


def test_routes_threshold(run: Run, bundle: Path):
    _, out, _ = run("route", str(bundle), "SELECT name FROM table", "--router-threshold", "1", "--json")
    assert json.loads(out)["expert"] is None


def test_route_judges_the_router_on_labelled_prompts(run: Run, bundle: Path, tmp_path: Path):
    data = tmp_path / "labelled.jsonl"
    data.write_text('{"text": "SELECT name FROM table", "task": "sql"}\n{"text": "zzz qqq", "task": null}\n')
    code, out, _ = run("route", str(bundle), "--data", str(data), "--json")
    quality = json.loads(out)
    assert (code, quality["prompts"], quality["foreign"], quality["accuracy"]) == (0, 1, 1, 1.0)
    _, out, _ = run("route", str(bundle), "--data", str(data))
    assert "accuracy             1.000" in out
    assert "prompts by their own expert (rows) and the router's choice (columns)" in out
    code, _, error = run("route", str(bundle))
    assert code != 0
    assert "give a prompt, or a file" in error
    code, _, error = run("route", str(bundle), "--data", str(tmp_path / "missing"))
    assert code == 1
    assert "cannot be read" in error
