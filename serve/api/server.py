"""Running the server: listen, load, serve, drain."""

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import uvicorn
from prometheus_client import disable_created_metrics

from serve.api.admin.paths import check_directories
from serve.api.app import create_app
from serve.api.generate.service import Runtime, Service, Teach
from serve.api.loading import load_runtime, warm_up
from serve.api.logs import configure_logging
from serve.api.security.auth import KeyRing, open_to_others
from serve.api.security.connection import HttpConfig
from serve.api.security.open_files import AcceptErrors, connections_that_fit
from serve.api.security.tls import Certificates
from serve.config import ServerSettings
from serve.engine import EngineDead
from serve.metrics import Metrics
from serve.tracing import tracing_from_environment

_BACKLOG = 2048
"""Connections that the kernel keeps until they are accepted."""

_WATCH_SECONDS = 0.25
"""How often the engine is asked whether it lives."""

_FLUSH_SECONDS = 5
"""How long clients get to read the ends of their replies once the engine has stopped."""

_Result = TypeVar("_Result")

_log = logging.getLogger("overtone")


class ServerError(ValueError):
    """The server cannot start. The message is one line."""


def run(settings: ServerSettings, on_ready: Callable[[str], None] | None = None, teach: Teach | None = None) -> None:
    """Serve a bundle until SIGTERM or SIGINT.

    The port is taken first, and probes are answered while the model loads. The first signal drains: nothing more is
    admitted (503), and what runs gets `settings.shutdown_timeout` seconds before it is aborted. A second signal aborts
    at once. If a step hangs even then, the process is ended by `os._exit`.

    Args:
        settings: the settings.
        on_ready: called with the server's URL once completions are answered.
        teach: trains the router on a new expert's prompts, None if that is not offered.

    Raises:
        ServerError: the address cannot be listened on, or the engine died.
        ValueError: TLS cannot be set up, or the bundle cannot be served.
    """
    # Each series would have a second line, with the time of its birth, that no dashboard reads.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    with contextlib.closing(listen(settings.host, settings.port)) as listener:
        life = _Run(settings, listener, teach)
        configure_logging(settings.log_level, settings.log_format)
        asyncio.run(life.serve(on_ready))


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket.

    Raises:
        ServerError: the address is taken, not this machine's or not an address.
    """
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)  # two sockets may be bound to one address as long as neither listens
    except OSError as error:
        if listener is not None:
            listener.close()
        raise ServerError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --host or --port"
        ) from error
    return listener


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers, which stop accepting at once and end the process by the signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen with the kernel's queue as long as it was: asyncio has one number for it and for accepts in a row."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_BACKLOG)


class _Run:
    """One life of the server."""

    def __init__(self, settings: ServerSettings, listener: socket.socket, teach: Teach | None = None):
        self._settings = settings
        self._listener = listener
        self._keys = KeyRing(settings.api)
        self._certificates = None if settings.tls is None else Certificates(settings.tls)
        check_directories(settings.api.expert_dirs)
        metrics = Metrics(version=settings.api.version)
        tracing = tracing_from_environment()
        self._service = Service(metrics, engine_timeout=settings.api.engine_timeout, teach=teach, tracing=tracing)
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._death: str | None = None
        self._stuck = False

    async def serve(self, on_ready: Callable[[str], None] | None) -> None:
        self._warn_if_open()
        server = _Uvicorn(self._config())
        asyncio.get_running_loop().set_exception_handler(AcceptErrors())
        with self._signals():
            serving = asyncio.create_task(server.serve(sockets=[self._listener]))
            try:
                runtime = await self._unless_stopped(asyncio.create_task(self._load()))
                if runtime is not None:
                    self._service.attach(runtime)
                    url = self._url()
                    _log.info("serving %s on %s", self._settings.bundle, url)
                    if on_ready is not None:
                        on_ready(url)
                    watching = asyncio.create_task(self._watch(runtime))
                    await self._unless_stopped(serving)
                    watching.cancel()
                    await self._drain(runtime)
            finally:
                server.should_exit = True
                await serving
        if self._stuck:
            end_process(1)
        if self._death is not None:
            raise ServerError(f"the engine has stopped: {self._death}")

    async def _watch(self, runtime: Runtime) -> None:
        """Notice that the engine died, or hangs: tell its requests, and stop unless the settings say otherwise."""
        while (reason := self._service.death()) is None:
            await asyncio.sleep(_WATCH_SECONDS)
        runtime.engine.fail(reason)
        if self._settings.on_engine_death == "exit":
            _log.error("the server exits so that its supervisor can restart it (see --on-engine-death)")
            self._death = reason
            self._stop.set()

    def _warn_if_open(self) -> None:
        warning = open_to_others(self._listener.getsockname()[0], self._keys, os.environ)
        if warning is not None:
            _log.warning(warning)

    def _config(self) -> uvicorn.Config:
        settings = self._settings
        fitting = connections_that_fit(settings.connections.max_connections)
        config = HttpConfig(
            create_app(self._service, settings.api, self._keys),
            settings.api,
            dataclasses.replace(settings.connections, max_connections=fitting),
            timeout_graceful_shutdown=_FLUSH_SECONDS,
        )
        config.load()
        if self._certificates is not None:
            config.ssl = self._certificates.context
        return config

    async def _load(self) -> Runtime:
        runtime = await _in_thread(lambda: load_runtime(self._settings, self._service.metrics, self._service.tracing))
        runtime.engine.start()
        try:
            await warm_up(runtime)
        except EngineDead as error:
            raise ServerError(f"the engine has stopped: {error}") from error
        return runtime

    async def _drain(self, runtime: Runtime) -> None:
        timeout = self._settings.shutdown_timeout
        _log.info("draining: running requests have %g seconds", timeout)
        self._service.drain()
        draining = asyncio.create_task(runtime.engine.shutdown(timeout))
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait({draining, hurry}, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not draining.done():
            draining.cancel()
            draining = asyncio.create_task(runtime.engine.shutdown(0))
        try:
            await draining
        except EngineDead as error:
            _log.error("the process is terminated immediately: %s", error)
            self._stuck = True
        else:
            _log.info("stopped")

    async def _unless_stopped(self, work: asyncio.Future[_Result]) -> _Result | None:
        """The result of `work`, or None if a signal comes first."""
        stop = asyncio.create_task(self._stop.wait())
        either: set[asyncio.Future[Any]] = {work, stop}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        return work.result() if work.done() else None

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may handle signals; in another thread the caller ends it
            return
        loop = asyncio.get_running_loop()
        handlers = {
            signal.SIGTERM: self._signalled,
            signal.SIGINT: self._signalled,
            signal.SIGHUP: self._reload,
        }
        before = {number: signal.getsignal(number) for number in handlers}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number, previous in before.items():
                loop.remove_signal_handler(number)  # which would leave the default action
                signal.signal(number, previous)

    def _reload(self) -> None:
        self._keys.reload()
        if self._certificates is not None:
            self._certificates.reload()

    def _signalled(self) -> None:
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def _url(self) -> str:
        host, port = self._listener.getsockname()[:2]
        scheme = "http" if self._settings.tls is None else "https"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def end_process(status: int) -> NoReturn:
    """End this process without waiting for its threads, one of which hangs."""
    logging.shutdown()
    os._exit(status)


def _in_thread(work: Callable[[], _Result]) -> asyncio.Future[_Result]:
    """Run `work` in a daemon thread: unlike an executor's, it does not delay the end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Result] = loop.create_future()

    def settle(result: _Result | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def body() -> None:
        result, failure = None, None
        try:
            result = work()
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=body, name="overtone-load", daemon=True).start()
    return future
