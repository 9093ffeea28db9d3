"""What the routes talk to: the loaded model and the server's phase."""

import asyncio
import contextvars
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from merge.bundle import RouterModel
from serve.api.errors import no_router, unavailable
from serve.api.generate.catalogue import Catalogue, Target
from serve.api.generate.client import EngineClient
from serve.api.generate.settings import ChatTemplate, ReplyRules, ReplySettings, SamplingDefaults
from serve.api.grammar.structure import Structures
from serve.api.messages import Dialect
from serve.api.security.auth import KeyLoads
from serve.api.text.codec import TextCodec
from serve.decision import Decision
from serve.engine import EngineError
from serve.metrics import Metrics
from serve.router import Router
from serve.tracing import SilentTracing, Tracing

ROUTING_THREADS = 32
"""Requests that are routed off the event loop at once, and whose prompts an encoder can read together."""

Result = TypeVar("Result")

Teach = Callable[[RouterModel, str, Sequence[str]], RouterModel]
"""(router, new expert's name, prompts for it) → the router with a head for it."""


class Phase(Enum):
    """Where the server is in its life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


@dataclass(frozen=True)
class Runtime:
    """A loaded bundle.

    Attributes:
        engine: generates, in tokens.
        codec: its tokenizer.
        router: None if there is no router.
        catalogue: names and digests.
        vocab_size: token ids that the model has rows for.
        structures: what keeps text to a grammar, over the model's tokens.
        chat_template: None if the model has none.
        tracing: records its requests.
        dialect: how it writes tool calls and reasoning.
        defaults: what requests get for the sampling fields that they leave out.
        rules: what of an expert's own settings is followed.
    """

    engine: EngineClient
    codec: TextCodec
    router: Router | None
    catalogue: Catalogue
    vocab_size: int
    structures: Structures
    chat_template: ChatTemplate | None = None
    tracing: Tracing = field(default_factory=SilentTracing)
    dialect: Dialect = field(default_factory=Dialect)
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)
    rules: ReplyRules = field(default_factory=ReplyRules)

    def replies(self, target: Target) -> ReplySettings:
        """What requests of a target follow: the backbone's settings, and an expert's own if it has them."""
        usual = ReplySettings(self.chat_template, self.dialect, self.defaults)
        own = self.catalogue.settings(target)
        return self.rules.applied(usual, own) if own else usual

    def foreseen(self, forced: Target | None, turns: Sequence[str]) -> ReplySettings:
        """What a chat would follow. The router is asked only if its choice makes a difference, and not counted.

        Args:
            forced: what the request names; None: the router chooses.
            turns: the user's messages.
        """
        if forced is None and turns and self.router is not None and self.catalogue.has_templates:
            forced = Target(self.router.decide_chat(turns).mix)
        return self.replies(forced or Target())


class Service:
    """The server's state. It begins without a model, so that probes are answered while one loads."""

    def __init__(
        self,
        metrics: Metrics,
        runtime: Runtime | None = None,
        engine_timeout: float | None = None,
        teach: Teach | None = None,
        tracing: Tracing | None = None,
    ):
        """Begin.

        Args:
            metrics: the metrics that it updates.
            runtime: the model, if it is loaded already.
            engine_timeout: seconds that a step may take, None for no limit.
            teach: trains the router on a new expert's prompts, None if that is not offered.
            tracing: records requests; None: nothing does.
        """
        self.metrics = metrics
        self.teach = teach
        self.tracing = tracing or SilentTracing()
        self.key_loads = KeyLoads()
        self._engine_timeout = engine_timeout
        self._threads = ThreadPoolExecutor(ROUTING_THREADS, "route")
        self.runtime = runtime
        self.phase = Phase.READY if runtime else Phase.LOADING

    def attach(self, runtime: Runtime) -> None:
        """The model is loaded."""
        self.runtime = runtime
        if self.phase is Phase.LOADING:
            self.phase = Phase.READY

    def drain(self) -> None:
        """Admit nothing more."""
        self.phase = Phase.DRAINING

    def ready(self) -> Runtime:
        """The model.

        Raises:
            ApiError: 503 while loading or draining, and after the engine died.
        """
        if self.phase is Phase.DRAINING:
            raise unavailable("the server is shutting down and takes no new requests", "draining")
        if self.runtime is None:
            raise unavailable("the model is still loading", "loading")
        if (reason := self.death()) is not None:
            raise unavailable(f"the engine has stopped: {reason}", "engine_dead")
        return self.runtime

    def state(self) -> str:
        """The phase in a word, "dead" after the engine's loop has ended."""
        return self.phase.value if self.death() is None else "dead"

    def death(self) -> str | None:
        """Why the engine does not answer: its loop ended, or a step takes too long. None while it does."""
        if self.runtime is None:
            return None
        try:
            self.runtime.engine.health()
        except EngineError as error:
            return str(error)
        seconds, limit = self.runtime.engine.step_seconds(), self._engine_timeout
        if limit is not None and seconds > limit:
            return f"a step has been running for {seconds:.0f} seconds, longer than the --engine-timeout of {limit:g}"
        return None

    def route(self, runtime: Runtime, turns: Sequence[str], top_k: int | None = None) -> Decision:
        """Ask the router, and count its answer.

        Args:
            runtime: the model.
            turns: the prompt, or the user's messages of a chat.
            top_k: most experts that may answer together; None: the router's own number.

        Raises:
            ApiError: 400 if there is no router.
        """
        router = _router(runtime)
        began = time.perf_counter()
        decision = self.tracing.route(lambda: router.decide_chat(turns, top_k))
        self._count(decision, time.perf_counter() - began)
        return decision

    def route_all(self, runtime: Runtime, prompts: Sequence[str], top_k: int | None = None) -> list[Decision]:
        """Ask the router for several prompts at once, and count its answers.

        Raises:
            ApiError: 400 if the bundle has no router.
        """
        router = _router(runtime)
        began = time.perf_counter()
        decisions = router.decide_all(prompts, top_k)
        seconds = (time.perf_counter() - began) / len(prompts)
        for decision in decisions:
            self._count(decision, seconds)
        return decisions

    def _count(self, decision: Decision, seconds: float) -> None:
        self.metrics.router.observe(
            decision.expert,
            seconds,
            decision.confidence,
            abstention=decision.abstention,
            near_tie=decision.near_tie,
            session=decision.session,
        )

    def target(self, runtime: Runtime, turns: Sequence[str], top_k: int | None = None) -> Target:
        """The router's decision as what to run."""
        decision = self.route(runtime, turns, top_k)
        return Target(decision.mix, decision.confidence, decision.session)

    async def off_loop(self, work: Callable[[], Result]) -> Result:
        """Do routing work in one of `ROUTING_THREADS` threads, so that the event loop is free and calls can gather."""
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._threads, context.run, work)


def _router(runtime: Runtime) -> Router:
    if runtime.router is None:
        raise no_router()
    return runtime.router
