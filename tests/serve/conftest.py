"""Tiny random models and experts, and bundles made of them."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GraniteConfig,
    GraniteMoeHybridConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

from merge.bundle import (
    Bundle,
    BundleWriter,
    Expert,
    LowRankDelta,
    ManifestFields,
    SparseDelta,
    backbone_digest,
    open_bundle,
    write_expert,
)
from merge.experts.running import cache_keyword
from serve.engine import (
    AsyncEngine,
    Engine,
    EngineConfig,
    EngineObserver,
    Output,
    Request,
    SamplingParams,
    build_engine,
)

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 1,
    "bos_token_id": None,
    "pad_token_id": None,
    "dtype": "float32",
}
FAMILIES: dict[str, type[PretrainedConfig]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "smollm3": SmolLM3Config,
    "phi3": Phi3Config,
    "granite": GraniteConfig,
    "granite4": GraniteMoeHybridConfig,
    "olmo2": Olmo2Config,
    "olmo3": Olmo3Config,
    "gemma": GemmaConfig,
    "gemma2": Gemma2Config,
    "gemma3": Gemma3TextConfig,
    "qwen3_moe": Qwen3MoeConfig,
    "mixtral": MixtralConfig,
}


def random_model(family: str = "llama", seed: int = 0, **settings: Any) -> PreTrainedModel:
    """A model whose next-token distribution is decided enough for greedy choices to survive rounding."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(FAMILIES[family](**{**SIZES, **settings}))
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter.shape[-1] ** -0.5 * 1.5 if parameter.dim() == 2 else 0.2
            offset = 1.0 if parameter.dim() == 1 else 0.0
            parameter.copy_(offset + scale * torch.randn(parameter.shape))
    return model.eval()


def random_expert(
    model: PreTrainedModel, digest: str, name: str, seed: int, entries: int = 3, scale: float = 0.5
) -> Expert:
    """A residual for every parameter but the embeddings, `entries` a row, large enough to change what is generated."""
    generator = torch.Generator().manual_seed(seed)
    sparse: dict[str, SparseDelta] = {}
    dense: dict[str, Tensor] = {}
    for parameter, tensor in model.named_parameters():
        if tensor.dim() == 1:
            dense[parameter] = 0.3 * torch.randn(tensor.shape, generator=generator)
        elif "embed_tokens" not in parameter and "lm_head" not in parameter:
            sparse[parameter] = random_delta(tensor.shape, entries, generator, scale)
    return Expert(name, digest, entries / 48, sparse, dense)


def random_delta(shape: Sequence[int], entries: int, generator: torch.Generator, scale: float = 0.5) -> SparseDelta:
    """A residual of a [N, K] weight with `entries` a row."""
    index = torch.rand(tuple(shape), generator=generator).topk(entries, dim=1).indices.sort(dim=1).values
    value = scale * torch.randn(index.shape, generator=generator)
    return SparseDelta(index.to(torch.uint16), value.to(torch.bfloat16))


def random_low_rank(
    shape: Sequence[int], rank: int, generator: torch.Generator, dtype: torch.dtype = torch.bfloat16, size: float = 1.5
) -> LowRankDelta:
    """A low-rank part of a [N, K] weight, large enough to change what is generated."""
    rows, columns = shape
    a, b = torch.randn(rank, columns, generator=generator), torch.randn(rows, rank, generator=generator)
    scale = torch.full((rank,), size / (rank * columns) ** 0.5)
    if dtype != torch.int8:
        return LowRankDelta(a.to(dtype), b.to(dtype), scale)
    of_a, of_b = a.abs().amax(1) / 127, b.abs().amax(0) / 127
    return LowRankDelta((a / of_a[:, None]).round().to(dtype), (b / of_b).round().to(dtype), of_a * of_b * scale)


def with_expert(model: PreTrainedModel, experts: Sequence[tuple[Expert, float]]) -> PreTrainedModel:
    """A dense copy of the model whose weights are backbone + Σ gate * residual."""
    copy: PreTrainedModel = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    parameters = dict(copy.named_parameters())
    with torch.no_grad():
        for expert, gate in experts:
            for name, residual in expert.sparse.items():
                parameters[name] += gate * residual.dense(parameters[name].shape[1])
            for name, factors in expert.low_rank.items():
                parameters[name] += gate * factors.dense()
            for name, delta in expert.dense.items():
                parameters[name] += gate * delta
    return copy.eval()


@dataclass
class TinyBundle:
    """A bundle with what it was made of."""

    bundle: Bundle
    model: PreTrainedModel
    experts: dict[str, Expert] = field(default_factory=dict)
    _dense: dict[tuple[tuple[str, float], ...], PreTrainedModel] = field(default_factory=dict)

    def dense(self, *experts: tuple[str, float]) -> PreTrainedModel:
        """The model with some of the experts added into its weights."""
        if experts not in self._dense:
            self._dense[experts] = with_expert(self.model, [(self.experts[name], gate) for name, gate in experts])
        return self._dense[experts]

    def greedy(self, prompt: Sequence[int], tokens: int, *experts: tuple[str, float]) -> list[int]:
        """What transformers generates greedily with dense weights, never stopping early."""
        model, found = self.dense(*experts), list[int]()
        cache, step = {cache_keyword(model): DynamicCache(config=model.config)}, torch.tensor([list(prompt)])
        with torch.inference_mode():
            while len(found) < tokens:
                logits = model(step, use_cache=True, **cache).logits
                found.append(int(logits[0, -1].argmax()))
                step = torch.tensor([found[-1:]])
        return found


def write_bundle(
    path: Path, model: PreTrainedModel, make: Callable[[str], Sequence[Expert]] = lambda _: ()
) -> TinyBundle:
    """Write a bundle of a model and the experts that `make` cuts against its digest."""
    with BundleWriter(path) as staging:
        model.save_pretrained(staging.path / "backbone")
        experts = make(backbone_digest(staging.path / "backbone"))
        for expert in experts:
            write_expert(staging.path / "experts" / f"{expert.name}.safetensors", expert)
        staging.finish(ManifestFields(name="tiny", created="2026-01-01T00:00:00Z"))
    return TinyBundle(open_bundle(path), model, {expert.name: expert for expert in experts})


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Matrices this small are computed faster by one thread than by several that wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> "TinyBundle":
    """A bundle that speaks bytes, with the experts `sql` and `poetry` and a router."""
    from tests.serve.api.bundles import write_speaking_bundle  # which imports this file

    return write_speaking_bundle(tmp_path_factory.mktemp("speaker") / "bundle")


@pytest.fixture(scope="session")
def _fakes() -> Iterator[ExitStack]:
    """Holds the cluster of `fake_replicas`, which also ends when `deployment` begins."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="session")
def deployment(speaker: "TinyBundle", _fakes: ExitStack) -> Iterator[Any]:
    """`overtone deploy` of the speaking bundle on two replicas; a `Deployed`, for all tests that ask for one.

    tests/conftest.py puts them after all tests with `fake_replicas`. An idle cluster takes a sixth of a processor.
    """
    pytest.importorskip("ray", reason="needs the extra ray")
    _fakes.close()
    from tests.serve.cluster.deployed import deployed
    from tests.serve.tracing.collector import collecting

    experts = speaker.bundle.path.parent / "more-experts"
    experts.mkdir()
    options = ["--replicas", "2", "--kv-cache-bytes", "16MiB", "--admin-api-key", "root", "--expert-dir", str(experts)]
    with (
        collecting() as collector,
        deployed(speaker.bundle.path, *options, environment=collector.environment) as running,
    ):
        running.traces = collector
        yield running


@pytest.fixture(scope="session")
def fake_replicas(_fakes: ExitStack) -> tuple[Any, str]:
    """The API's fake engine in two replicas: a `RemoteEngine`, and their URL."""
    pytest.importorskip("ray.serve", reason="needs the extra ray")  # whose own import warns
    from tests.serve.cluster.fakes import serving

    return _fakes.enter_context(serving())


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    """A Llama with four experts, `a` to `d`."""
    model = random_model()
    return write_bundle(
        tmp_path_factory.mktemp("tiny") / "bundle",
        model,
        lambda digest: [random_expert(model, digest, name, seed) for seed, name in enumerate("abcd")],
    )


def engine_of(bundle: Bundle, observer: EngineObserver | None = None, **settings: Any) -> AsyncEngine:
    """An engine, not started, with small blocks and little memory unless `settings` say otherwise."""
    small: dict[str, Any] = {
        "max_num_seqs": 8,
        "max_num_batched_tokens": 32,
        "block_size": 4,
        "kv_cache_bytes": 1 << 20,
    }
    return build_engine(bundle, EngineConfig(**{**small, **settings}), observer)


def greedy(tokens: int, **params: Any) -> SamplingParams:
    """Greedy choice of exactly `tokens` tokens."""
    return SamplingParams(**{"max_tokens": tokens, "temperature": 0.0, "ignore_eos": True, **params})


def drain(engine: Engine, patience: float = 20.0) -> dict[str, list[Output]]:
    """Step an engine until all requests are finished. It waits for experts if there is nothing to compute."""
    outputs: dict[str, list[Output]] = {}
    deadline = time.monotonic() + patience
    while engine.has_work:
        assert time.monotonic() < deadline, "the engine does not finish its requests"
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
        if engine.idle:
            time.sleep(0.002)
    return outputs


def tokens_of(outputs: Sequence[Output]) -> list[int]:
    """All generated tokens of a request."""
    return [token.token for output in outputs for token in output.tokens]


def run_alone(engine: Engine, *requests: Request) -> dict[str, list[int]]:
    """Tokens of each request, by its id, each computed with nothing else in the engine."""
    tokens: dict[str, list[int]] = {}
    for request in requests:
        engine.add(request)
        tokens[request.request_id] = tokens_of(drain(engine)[request.request_id])
    return tokens
