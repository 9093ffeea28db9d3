"""A real `overtone serve`, in a separate process if signals matter."""

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client import enable_created_metrics

from serve.api.server import ServerError, _in_thread, _Run, listen
from serve.cli import main
from serve.config import ApiSettings, ServerSettings, TlsSettings
from serve.engine import Engine, Output
from tests.serve.api.bundles import write_speaking_bundle
from tests.serve.certificates import self_signed

LONG = {"model": "sql", "prompt": "x", "max_tokens": 250, "ignore_eos": True, "logit_bias": {"97": 100}}
KEY = {"Authorization": "Bearer two"}


class Process:
    """A running `overtone serve` on a free port; its log is collected while it runs.

    Args:
        arguments: the command's.
        first: Python code to run before it.
        environment: further variables.
    """

    def __init__(self, *arguments: str, first: str = "", **environment: str):
        program = f"{first}\nfrom serve.cli import main; main()"
        command = [sys.executable, "-W", "error", "-c", program, "serve", *arguments]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}
        )
        self.log = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr:
            self.log += line

    def url(self) -> str:
        """Its address, once it is ready."""
        deadline = time.monotonic() + 240
        while (match := re.search(r"serving .* on (https?://[^\s\"]+)", self.log)) is None:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.01)
        return match[1]

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def code(self) -> int:
        """Its exit status."""
        code = self.process.wait(200)
        self._reader.join()
        return code

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stderr.close()


@contextlib.contextmanager
def started(*arguments: str, first: str = "", **environment: str) -> Iterator[Process]:
    process = Process(*arguments, first=first, **environment)
    try:
        yield process
    finally:
        process.end()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speaking_bundle(tmp_path_factory.mktemp("speaker") / "bundle", router=False).bundle.path


@contextlib.contextmanager
def reading(url: str) -> Iterator[list[str]]:
    """A long stream, read in the background; the list has its events so far, and all of them after the block."""
    events: list[str] = []

    def read() -> None:
        body = {**LONG, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=200, headers=KEY) as reply:
            events.extend(line for line in reply.iter_lines() if line)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        while not events:
            assert reader.is_alive(), "the stream ended without an event"
            time.sleep(0.005)
        yield events
    finally:
        reader.join()


@pytest.mark.promise(number=10)
def test_sigterm_drains_and_exits_with_0_and_options_are_variables(bundle: Path):
    settings = {"OVERTONE_PORT": "0", "OVERTONE_SERVED_MODEL_NAME": "talker", "OVERTONE_API_KEY": "one two"}
    with started(str(bundle), "--shutdown-timeout", "200", "--log-format", "json", **settings) as server:
        url = server.url()
        assert httpx.get(f"{url}/v1/models").status_code == 401
        with httpx.Client(base_url=url, timeout=200, headers=KEY) as http:
            assert http.get("/v1/models").json()["data"][0]["id"] == "talker"
            with reading(url) as events:
                server.signal()
                while http.get("/ready").status_code == 200:
                    time.sleep(0.002)
                refused = http.post("/v1/completions", json=LONG)
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert server.code() == 0
        assert events[-1] == "data: [DONE]"
        assert '"finish_reason":"length"' in events[-2]
        lines = [json.loads(line) for line in server.log.splitlines()]
        assert all(line["level"] for line in lines)
        assert lines[-1]["message"] == "stopped"
        assert "Traceback" not in server.log
        assert "two" not in server.log


def test_a_certificate_that_is_none_is_one_line(bundle: Path, tmp_path: Path, one_line: Callable[..., str]):
    (tmp_path / "cert.pem").write_text("no certificate")
    line = one_line(str(bundle), "--port", "0", "--ssl-certfile", str(tmp_path / "cert.pem"))
    assert f"{tmp_path / 'cert.pem'} (--ssl-certfile) holds no certificate" in line


@pytest.fixture
def one_line(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """Runs `overtone serve` in this process and returns the one line that it failed with."""
    loggers = [logging.getLogger(name) for name in ("overtone", "uvicorn", "asyncio")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]

    def run(*arguments: str) -> str:
        capsys.readouterr()  # saving the model shows its progress
        with pytest.raises(SystemExit) as ended:
            main(["serve", *arguments])
        assert ended.value.code == 1
        out, err = capsys.readouterr()
        assert (out, err[:7], err.count("\n")) == ("", "error: ", 1)
        return err

    yield run
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)
    enable_created_metrics()


def test_a_port_in_use_is_one_line(bundle: Path, one_line: Callable[..., str]):
    with contextlib.closing(listen("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in one_line(str(bundle), "--port", port)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", "no bundle or model at"),
        ("no tokenizer", "tokenizer.json"),
        ("too long", "max_model_len is 100000; it must be at most 256"),
    ],
)
def test_a_bundle_that_cannot_be_served_is_one_line(tmp_path: Path, one_line: Callable[..., str], damage, message):
    path = tmp_path / "bundle"
    if damage != "missing":
        write_speaking_bundle(path, router=False)
    if damage == "no tokenizer":
        (path / "backbone" / "tokenizer.json").unlink()
    arguments = ["--max-model-len", "100000"] if damage == "too long" else []
    assert message in one_line(str(path), "--port", "0", *arguments)


HANG = """
import os, time
from pathlib import Path
from serve.engine import Engine
step = Engine.step

def hanging_step(self):
    while Path(os.environ["HANG"]).exists():
        time.sleep(0.01)
    return step(self)

Engine.step = hanging_step
"""


def test_a_second_signal_ends_a_server_whose_step_hangs(bundle: Path, tmp_path: Path):
    hang = tmp_path / "hang"
    with started(str(bundle), "--port", "0", "--shutdown-timeout", "1000", first=HANG, HANG=str(hang)) as server:
        with reading(server.url()) as events:
            hang.touch()
            server.signal()
            while "draining" not in server.log:
                time.sleep(0.01)
            server.signal()
        assert server.code() == 1
    assert events[-1] == "data: [DONE]"
    assert '"code":"engine_dead"' in events[-2]
    assert "the process is terminated immediately: a step does not end" in server.log
    assert "in hanging_step" in server.log


@pytest.fixture
def log() -> Iterator[list[logging.LogRecord]]:
    records: list[logging.LogRecord] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    collector, logger = Collector(), logging.getLogger("overtone")
    logger.addHandler(collector)
    yield records
    logger.removeHandler(collector)


@contextlib.asynccontextmanager
async def living(
    settings: ServerSettings, verify: ssl.SSLContext | bool = True
) -> AsyncIterator[tuple[_Run, "asyncio.Task[None]", httpx.AsyncClient]]:
    """A server in this process: its life, the task that runs it, and a client."""
    with contextlib.closing(listen("127.0.0.1", 0)) as listener:
        life, urls = _Run(settings, listener), asyncio.Queue()
        serving = asyncio.create_task(life.serve(urls.put_nowait))
        async with httpx.AsyncClient(base_url=await urls.get(), timeout=60, verify=verify) as client:
            yield life, serving, client


async def read_until(client: httpx.AsyncClient, begun: Callable[[], None]) -> list[str]:
    """All events of a long stream; `begun` is called after the first."""
    events: list[str] = []
    async with client.stream("POST", "/v1/completions", json={**LONG, "model": "backbone", "stream": True}) as reply:
        async for line in reply.aiter_lines():
            if line:
                events.append(line)
            if len(events) == 1:
                begun()
    return events


async def test_a_signal_loads_changed_certificates_and_keys(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("serve.api.server._FLUSH_SECONDS", 1000)  # its end does not wait for idle clients of TLS
    caplog.set_level(logging.INFO, "overtone")
    keys = tmp_path / "keys"
    keys.write_text("old\n")
    tls = TlsSettings(*self_signed(tmp_path))
    trusted = ssl.create_default_context(cafile=tls.certfile)
    settings = ServerSettings(bundle, api=ApiSettings(api_key_file=keys), tls=tls)
    async with living(settings, verify=trusted) as (life, serving, client):
        assert client.base_url.scheme == "https"

        async def status(bearer: str) -> int:
            return (await client.get("/v1/models", headers={"Authorization": f"Bearer {bearer}"})).status_code

        assert (await status("old"), await status("new")) == (200, 401)
        keys.write_text("new\n")
        signal.raise_signal(signal.SIGHUP)
        while await status("new") != 200:
            await asyncio.sleep(0.01)
        assert await status("old") == 401
        renewed = tmp_path / "renewed"
        renewed.mkdir()
        for before, after in zip((tls.certfile, tls.keyfile), self_signed(renewed), strict=True):
            after.replace(before)
        caplog.clear()
        signal.raise_signal(signal.SIGHUP)
        while not any(message.startswith("TLS certificate: ") for message in caplog.messages):
            await asyncio.sleep(0.01)

        async def health(context: ssl.SSLContext) -> int:
            async with httpx.AsyncClient(base_url=client.base_url, verify=context) as new:
                return (await new.get("/health")).status_code

        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            await health(trusted)
        assert await health(ssl.create_default_context(cafile=tls.certfile)) == 200
        life._signalled()
        await serving


async def test_what_does_not_finish_in_time_is_aborted(bundle: Path):
    async with living(ServerSettings(bundle, shutdown_timeout=0)) as (_, serving, client):
        events = await read_until(client, lambda: signal.raise_signal(signal.SIGINT))
        await serving
    assert events[-1] == "data: [DONE]"
    assert '"code":"aborted"' in events[-2]


async def test_a_dead_engine_is_logged_and_ends_the_server(
    bundle: Path, log: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
):
    def breaks(_: Engine) -> list[Output]:
        raise AssertionError("unforeseen")

    async with living(ServerSettings(bundle)) as (_, serving, client):
        events = await read_until(client, lambda: monkeypatch.setattr(Engine, "step", breaks))
        with pytest.raises(ServerError, match="the engine has stopped: .* AssertionError: unforeseen"):
            await serving
    assert '"code":"engine_dead"' in events[-2]
    assert events[-1] == "data: [DONE]"
    (told,) = [record for record in log if record.exc_info is not None]
    assert (told.levelname, str(told.exc_info[1])) == ("ERROR", "unforeseen")


async def test_a_hanging_step_ends_the_streams_and_the_server_may_stay(
    bundle: Path, log: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
):
    step, go_on = Engine.step, threading.Event()

    def hangs(engine: Engine) -> list[Output]:
        assert go_on.wait(60)
        return step(engine)

    settings = ServerSettings(bundle, on_engine_death="stay", api=ApiSettings(engine_timeout=0.2))
    async with living(settings) as (life, serving, client):
        events = await read_until(client, lambda: monkeypatch.setattr(Engine, "step", hangs))
        assert '"code":"engine_dead"' in events[-2]
        assert events[-1] == "data: [DONE]"
        health = await client.get("/health")
        assert (health.status_code, health.json()["error"]["code"]) == (503, "engine_dead")
        assert not serving.done()
        go_on.set()
        refused = await client.post("/v1/completions", json={**LONG, "model": "backbone"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_dead")
        life._signalled()
        await serving
    (told,) = [record for record in log if record.levelname == "ERROR"]
    trace = logging.Formatter().formatException(told.exc_info)
    assert "in hangs" in trace
    assert "longer than the --engine-timeout of 0.2" in trace.splitlines()[-1]


async def test_a_second_signal_cuts_the_wait_for_requests_short(bundle: Path):
    async with living(ServerSettings(bundle, shutdown_timeout=1000)) as (life, serving, client):

        def signalled_twice() -> None:
            life._signalled()
            asyncio.get_running_loop().call_later(0.05, life._signalled)

        events = await read_until(client, signalled_twice)
        await serving
    assert events[-1] == "data: [DONE]"


async def test_a_signal_while_loading_ends_the_wait(bundle: Path):
    with contextlib.closing(listen("127.0.0.1", 0)) as listener:
        life = _Run(ServerSettings(bundle), listener)
        never = asyncio.get_running_loop().create_future()
        waiting = asyncio.create_task(life._unless_stopped(never))
        await asyncio.sleep(0)
        life._signalled()
        assert await waiting is None


def test_a_public_address_without_a_key_is_logged(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    warnings: list[str] = []
    monkeypatch.setattr(logging.getLogger("overtone"), "warning", warnings.append)
    for address in ("127.0.0.1", "0.0.0.0"):
        with socket.socket() as listener:
            monkeypatch.setattr(socket.socket, "getsockname", lambda _, address=address: (address, 80))
            _Run(ServerSettings(bundle), listener)._warn_if_open()
    (warning,) = warnings
    assert warning.startswith("0.0.0.0 is not a loopback address, and there is no API key")


async def test_signal_handlers_are_put_back(bundle: Path):
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    with contextlib.closing(listen("127.0.0.1", 0)) as listener, _Run(ServerSettings(bundle), listener)._signals():
        assert signal.getsignal(signal.SIGTERM) is not before[signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in numbers} == before


def test_clients_close_idle_connections_before_the_server_does(bundle: Path):
    """A connection that the server closes while a request is on its way loses the request."""
    with contextlib.closing(listen("127.0.0.1", 0)) as listener:
        assert _Run(ServerSettings(bundle), listener)._config().timeout_keep_alive > 60


async def test_loading_in_a_thread_gives_its_result_or_its_error():
    assert await _in_thread(lambda: 7) == 7
    with pytest.raises(ValueError, match="bad"):
        await _in_thread(lambda: raises(ValueError("bad")))


def raises(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("host", ["256.0.0.1", "203.0.113.1"])
def test_an_address_that_is_not_ours(host: str):
    with pytest.raises(ServerError, match=re.escape(f"cannot listen on {host}:0")):
        listen(host, 0)


def test_a_taken_port_is_noticed_although_nobody_accepts_yet():
    with contextlib.closing(listen("127.0.0.1", 0)) as first, pytest.raises(ServerError, match="in use"):
        listen("127.0.0.1", first.getsockname()[1])


def test_ipv6():
    if not socket.has_ipv6:
        pytest.skip("this Python has no IPv6")
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with contextlib.closing(listen("::1", 0)) as listener:
        assert listener.family == socket.AF_INET6
