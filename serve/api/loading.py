"""From a bundle's or a model's directory to something that answers, and its first token."""

import dataclasses
import gc
import logging
from collections.abc import Callable, Sequence

from merge.bundle import Bundle, open_model
from serve.api.generate.catalogue import Catalogue
from serve.api.generate.client import EngineClient
from serve.api.generate.service import Runtime
from serve.api.generate.settings import ChatTemplate, ReplyRules, SamplingDefaults
from serve.api.grammar.structure import Structures
from serve.api.messages import Dialect
from serve.api.text.codec import TextCodec
from serve.config import LoraModule, ServerSettings
from serve.engine import EngineError, Request, SamplingParams, build_engine
from serve.metrics import Metrics
from serve.model import read_config
from serve.router import Router
from serve.tracing import SilentTracing, Tracing
from serve.tracing.tracing import TracedObserver

_log = logging.getLogger("overtone")

Connect = Callable[[Bundle], EngineClient]


def load_runtime(
    settings: ServerSettings, metrics: Metrics, tracing: Tracing | None = None, connect: Connect | None = None
) -> Runtime:
    """Open the bundle or the model, load tokenizer, router, weights and adapters. The engine's loop is not started yet.

    Args:
        settings: what to serve, and how.
        metrics: counts what the engine does.
        tracing: records it, too.
        connect: gives the engine of the bundle; None: it is loaded into this process.

    Raises:
        ValueError: the bundle, an adapter or a part of one is missing, damaged or does not fit.
    """
    tracing = tracing or SilentTracing()
    bundle = dataclasses.replace(open_model(settings.bundle), other_router=settings.router)
    codec = TextCodec.from_directory(bundle.backbone_dir)
    router = None
    if bundle.router_dir:
        adapters = [module.name for module in settings.lora_modules]
        router = Router.from_bundle(bundle, settings.router_threshold, adapters, settings.session_routing)
    chat_template = ChatTemplate.from_directory(bundle.backbone_dir, settings.chat_template)
    dialect = Dialect.of(
        None if chat_template is None else chat_template.for_tools,
        settings.tool_call_parser,
        settings.reasoning_parser,
    )
    defaults = SamplingDefaults()
    if settings.generation_config == "auto":
        defaults = SamplingDefaults.from_directory(bundle.backbone_dir)
    engine = _engine(settings, bundle, metrics, tracing) if connect is None else connect(bundle)
    config = read_config(bundle.backbone_dir)
    max_model_len = settings.engine.max_model_len or config.max_positions
    if router is None:
        names = ", ".join(settings.served_model_names or (bundle.manifest.name,))
        _log.warning(
            "there is no router: %s answers with the backbone alone and 'auto' is refused; name an expert",
            names,
        )
    if dialect.tools:
        _log.info("tool calls are parsed in the format %s", dialect.tools)
    if defaults.given:
        recommended = ", ".join(f"{name} {value:g}" for name, value in defaults.given.items())
        _log.info("the model's generation_config.json sets defaults of requests: %s", recommended)
    catalogue = Catalogue.from_bundle(bundle, max_model_len, settings.served_model_names)
    return Runtime(
        engine=engine,
        codec=codec,
        router=router,
        catalogue=_with_adapters(catalogue, engine, settings.lora_modules),
        tracing=tracing,
        vocab_size=config.vocab_size,
        structures=Structures(codec, config.eos_token_ids),
        chat_template=chat_template,
        dialect=dialect,
        defaults=defaults,
        rules=ReplyRules(
            templates=settings.chat_template is None,
            sampling=settings.generation_config == "auto",
            tools=settings.tool_call_parser,
            reasoning=settings.reasoning_parser,
        ),
    )


def _engine(settings: ServerSettings, bundle: Bundle, metrics: Metrics, tracing: Tracing) -> EngineClient:
    try:
        adapters = {module.name: module.path for module in settings.lora_modules}
        engine = build_engine(bundle, settings.engine, TracedObserver(metrics.engine, tracing), adapters)
    except EngineError as error:
        raise ValueError(str(error)) from error
    metrics.watch(engine.stats)
    return engine


def _with_adapters(catalogue: Catalogue, engine: EngineClient, modules: Sequence[LoraModule]) -> Catalogue:
    """The names with those of the adapters.

    Raises:
        ValueError: a name means something else.
    """
    versions = {info.version.name: info.version for info in engine.experts()} if modules else {}
    for module in modules:
        version = versions[module.name]
        base, root = module.base_model_name, str(module.path)
        catalogue = catalogue.with_adapter(module.name, version.digest, root, base, version.settings)
    return catalogue


async def warm_up(runtime: Runtime) -> None:
    """Generate with the backbone alone, and with an expert if there is one. The engine must be running.

    An expert that fails is only logged: the others, and the backbone, can be served.

    Raises:
        ValueError: the backbone cannot generate.
    """
    if (error := await _token(runtime, ())) is not None:
        raise ValueError(f"the model does not generate: {error}")
    for name in list(runtime.catalogue.experts)[:1]:
        if (error := await _token(runtime, ((name, 1.0),))) is not None:
            _log.warning("the expert %s does not generate: %s", name, error)
    # What is loaded stays. With it, each full collection would stop all threads for 0.15 s.
    gc.collect()
    gc.freeze()


async def _token(runtime: Runtime, experts: tuple[tuple[str, float], ...]) -> str | None:
    """Two tokens, one after the prompt and one by decoding; the error, if there is one."""
    params = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)
    request = Request("warm-up", (0,), params, experts, warm_up=True)
    async for output in runtime.engine.generate(request):
        if output.finish_reason == "error":
            return output.error or "no reason given"
    return None
