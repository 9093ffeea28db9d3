"""From a bundle's or a model's directory to something that answers."""

import dataclasses
import logging
from collections.abc import Callable, Sequence

from merge.bundle import Bundle, open_model
from serve.api.catalogue import Catalogue
from serve.api.chat_template import ChatTemplate
from serve.api.client import EngineClient
from serve.api.messages import Dialect
from serve.api.reply_settings import ReplyRules
from serve.api.sampling_defaults import SamplingDefaults
from serve.api.service import Runtime
from serve.api.structure import Structures
from serve.api.text import TextCodec
from serve.config import LoraModule, ServerSettings
from serve.engine import EngineError, build_engine
from serve.metrics import Metrics
from serve.model import read_config
from serve.router import Router
from serve.tracing import SilentTracing, Tracing
from serve.tracing.observer import TracedObserver

_log = logging.getLogger("overtone")

Connect = Callable[[Bundle], EngineClient]


def load_runtime(
    settings: ServerSettings, metrics: Metrics, tracing: Tracing | None = None, connect: Connect | None = None
) -> Runtime:
    """Open the bundle or the model, load tokenizer, router, weights and adapters. The engine's loop is not started yet.

    Args:
        settings: what to serve, and how.
        metrics: told of what the engine does.
        tracing: told of it, too.
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
        _log.info("tool calls are read as %s writes them", dialect.tools)
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
