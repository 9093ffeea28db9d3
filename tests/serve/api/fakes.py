"""An engine with scripted outputs, a byte-level tokenizer, and a server."""

import asyncio
import codecs
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import uvicorn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from serve.api.app import create_app
from serve.api.generate.catalogue import Catalogue, Entry
from serve.api.generate.service import Runtime, Service
from serve.api.generate.settings import ChatTemplate
from serve.api.grammar.structure import Structures
from serve.api.security.connection import HttpConfig
from serve.api.text.codec import TextCodec
from serve.config import ApiSettings, ConnectionSettings
from serve.decision import Decision
from serve.engine import EngineDead, EngineError, Output, Request, TokenOutput
from serve.experts import ExpertLoadError, ExpertVersion
from serve.metrics import Metrics
from serve.sessions import followed

EOS = 256
MAX_MODEL_LEN = 512


def byte_codec() -> TextCodec:
    """One token a UTF-8 byte, in GPT-2's alphabet, and <eos>: characters beyond ASCII span tokens."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in plain]
    vocabulary = {chr(byte): byte for byte in plain} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>"])
    return TextCodec(tokenizer)


def byte_text(tokens: Iterable[int]) -> str:
    """What tokens of `byte_codec` say, without the special ones and without a character that they only begin."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(bytes(token for token in tokens if token < EOS))


def says(text: str) -> Callable[[Request], list[int]]:
    """A model that always answers `text` and ends."""
    return lambda request: [*text.encode(), EOS]


CHAT_TEMPLATE = """\
{%- for message in messages %}
{%- if message.role == 'developer' %}{{ raise_exception('no developers here') }}{% endif %}
{{- message.role[0] }}:{{ shout | default(false) and message.content | upper or message.content }}
{%- if not (loop.last and message.role == 'assistant') %}{{ eos_token }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}a:{% endif %}"""
"""`u:question<eos>a:`, and `shout` as a variable."""


class FakeStream(AsyncIterator[Output]):
    """Outputs, and the versions that the request was admitted with."""

    def __init__(self, outputs: AsyncGenerator[Output, None], request: Request):
        self._outputs = outputs
        self.experts = tuple(
            (ExpertVersion(name, Path(f"/{name}"), f"digest of {name}", 1), gate) for name, gate in request.experts
        )

    async def admitted(self) -> None:
        """At once: the engine refuses in `generate`."""

    async def __anext__(self) -> Output:
        return await anext(self._outputs)


class FakeEngine:
    """Yields the tokens of `model(request)` one by one, `delay` seconds apart."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.model = says("hello")
        self.delay = 0.0
        self.wait = 0.0  # of requests that generate nothing
        self.refusal: EngineError | None = None
        self.refuse_after = 0
        self.dead: str | None = None
        self.output_error: str | None = None
        self.expert_error: ExpertLoadError | None = None
        self.requests: list[Request] = []
        self.running: set[str] = set()
        self.aborted: list[str] = []
        self.cached_tokens = 0
        self.hanging = 0.0
        self.pooled: Callable[[Request], tuple[float, ...]] = lambda request: (float(len(request.prompt)), 1.0)
        self.logprob: Callable[[Request, int], float] = lambda request, token: -0.5

    def step_seconds(self) -> float:
        return self.hanging

    def health(self) -> None:
        if self.dead is not None:
            raise EngineDead(self.dead)

    def abort(self, request_id: str) -> None:
        if request_id in self.running:
            self.running.remove(request_id)
            self.aborted.append(request_id)

    def generate(self, request: Request) -> FakeStream:
        if self.refusal is not None and len(self.requests) >= self.refuse_after:
            raise self.refusal
        self.requests.append(request)
        self.running.add(request.request_id)
        return FakeStream(self._run(request), request)

    async def _run(self, request: Request) -> AsyncGenerator[Output, None]:
        name, params = request.request_id, request.params
        scored = None
        if params.prompt_logprobs is not None:
            known = [TokenOutput(token, -0.25, ((token, -0.25),)) for token in request.prompt[request.scored_from :]]
            scored = (*(None for _ in range(request.scored_from)), *known)
        pooled = None if request.pooling is None else self.pooled(request)
        tokens = self.model(request)[: params.max_tokens] if params.max_tokens else []
        if not tokens:
            await asyncio.sleep(self.wait)
            self.running.discard(name)
            yield Output(name, finish_reason="length", prompt_logprobs=scored, pooled=pooled)
            return
        for number, token in enumerate(tokens, 1):
            await asyncio.sleep(self.delay)
            if self.dead is not None:
                raise EngineDead(self.dead)
            if name not in self.running:
                yield Output(name, finish_reason="abort")
                return
            if self.expert_error is not None:
                self.running.discard(name)
                yield Output(
                    name, finish_reason="error", error=self.expert_error.public, expert_error=self.expert_error
                )
                return
            if self.output_error is not None and number == 2:
                self.running.discard(name)
                yield Output(name, finish_reason="error", error=self.output_error)
                return
            ends = token in params.stop_token_ids or (token == EOS and not params.ignore_eos)
            finish = "stop" if ends else "length" if number == len(tokens) else None
            if finish:
                self.running.discard(name)
            logprob = self.logprob(request, token)
            top = None if params.logprobs is None else tuple((token + k, logprob - k) for k in range(params.logprobs))
            output = TokenOutput(token, None if params.logprobs is None else logprob, top)
            yield Output(name, (output,), finish, None, self.cached_tokens, scored)
            scored = None
            if finish:
                return


class WordRouter:
    """Routes by the first expert whose name is in the text; sure by 0.9, else the backbone by 0.6."""

    def __init__(self, names: tuple[str, ...]):
        self.names = names

    encodes = False

    def decide_all(self, prompts: Sequence[str], top_k: int | None = None) -> list[Decision]:
        return [self.decide(prompt, top_k) for prompt in prompts]

    def decide_chat(self, turns: Sequence[str], top_k: int | None = None) -> Decision:
        return followed([self.decide(turn, top_k) for turn in turns])

    def decide(self, prompt: str, top_k: int | None = None) -> Decision:
        chances = np.array([0.9 if name in prompt else 0.05 for name in self.names])
        best = next((name for name in self.names if name in prompt), None)
        named = [name for name in self.names if name in prompt][: top_k or 1]
        mix = tuple((name, 1 / len(named)) for name in named)
        return Decision(best, 0.9 if best else 0.6, self.names, chances, mix)


def fake_service(engine: FakeEngine, experts: tuple[str, ...] = ("sql", "poetry")) -> Service:
    """A ready service over a fake engine."""
    catalogue = Catalogue(
        routing=("tiny", "auto"),
        experts={name: Entry(f"digest of {name}", f"/bundle/experts/{name}.safetensors") for name in experts},
        backbone_digest="digest of the backbone",
        backbone_root="/bundle/backbone",
        created=1_700_000_000,
        max_model_len=MAX_MODEL_LEN,
    )
    codec = byte_codec()
    runtime = Runtime(
        engine=engine,
        codec=codec,
        router=WordRouter(experts),
        catalogue=catalogue,
        vocab_size=EOS + 1,
        structures=Structures(codec, (EOS,)),
        chat_template=ChatTemplate(CHAT_TEMPLATE, {"eos_token": "<eos>"}),
    )
    return Service(Metrics(version="1.2.3"), runtime)


@contextmanager
def live(
    service: Service, settings: ApiSettings | None = None, connections: ConnectionSettings | None = None
) -> Iterator[str]:
    """A server in a thread; yields its URL."""
    settings = settings or ApiSettings(version="1.2.3")
    app = create_app(service, settings)
    config = HttpConfig(
        app,
        settings,
        connections or ConnectionSettings(),
        host="127.0.0.1",
        port=0,
        loop="asyncio",
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            threading.Event().wait(0.005)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
