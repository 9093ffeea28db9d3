"""The engine: token ids in, token ids out; it never sees text.

`request`, `config`, `records` and `errors` are the values that cross its border. `sequence`, `kv_blocks`, `lines`,
`waiting`, `slot_turns` and `scheduler` decide what a step computes, `patching`, `mixes` and `runner` compute it (on a
GPU by `graphs`, which are made of a `static_step` and a `capture`), `sampler` draws the tokens, and `engine` puts a
step together. `loop` and `stream` bring it to asyncio, `device`, `memory` and `build` make one from a bundle.
"""

from serve.config.engine import EngineConfig
from serve.engine.build import build_engine
from serve.engine.engine import Engine
from serve.engine.errors import (
    Draining,
    EngineDead,
    EngineError,
    ExpertUnavailable,
    InvalidRequest,
    PromptTooLong,
    QueueFull,
    UnknownExpert,
)
from serve.engine.loop import AsyncEngine
from serve.engine.records import EngineObserver, EngineStats, RequestRecord, SilentObserver, StepRecord
from serve.engine.request import Output, Request, SamplingParams, TokenOutput
from serve.engine.stream import OutputStream
from serve.engine.token_rules import TokenMask

__all__ = [
    "AsyncEngine",
    "Draining",
    "Engine",
    "EngineConfig",
    "EngineDead",
    "EngineError",
    "EngineObserver",
    "EngineStats",
    "ExpertUnavailable",
    "InvalidRequest",
    "Output",
    "OutputStream",
    "PromptTooLong",
    "QueueFull",
    "Request",
    "RequestRecord",
    "SamplingParams",
    "SilentObserver",
    "StepRecord",
    "TokenMask",
    "TokenOutput",
    "UnknownExpert",
    "build_engine",
]
