"""LoRA adapters on a plain model directory: the engine's answers are PEFT's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from merge.bundle import Bundle, open_model
from merge.export import export_adapter
from serve.engine import AsyncEngine, EngineConfig, EngineError, Output, Request, build_engine
from serve.model import ModelError
from tests.merge.export.bundles import EMBEDDING, UP, factors, write
from tests.serve.conftest import TinyBundle, drain, greedy, random_expert, write_bundle
from tests.serve.loras import ADAPTERS, peft_logits, peft_model, write_adapter, write_adapters, write_model

pytest.importorskip("peft")
# PEFT's own use of what transformers deprecates is not this project's to mend.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")

PROMPTS = ((11, 22, 33, 44, 55), (5, 4, 3), (60, 61, 62, 63, 64, 65, 66))


def engine_of(bundle: Bundle, adapters: dict[str, Path] | None = None, **settings: Any) -> AsyncEngine:
    small: dict[str, Any] = {
        "max_num_seqs": 16,
        "max_num_batched_tokens": 32,
        "block_size": 4,
        "kv_cache_bytes": 1 << 20,
    }
    return build_engine(bundle, EngineConfig(**{**small, **settings}), None, adapters)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("loras") / "base"
    write_model(path)
    return path


@pytest.fixture(scope="module")
def adapters(base: Path) -> dict[str, Path]:
    return write_adapters(base, base.parent)


def check(wrapped: Any, prompt: Sequence[int], adapter: str | None, outputs: Sequence[Output]) -> None:
    """The generated tokens are the most likely ones of PEFT's model, with its log-probabilities."""
    found = [token for output in outputs for token in output.tokens]
    text = [*prompt, *(token.token for token in found)]
    logprobs = peft_logits(wrapped, text, adapter).log_softmax(-1)[len(prompt) - 1 : -1]
    assert [token.token for token in found] == logprobs.argmax(-1).tolist()
    want = logprobs.max(-1).values
    torch.testing.assert_close(torch.tensor([token.logprob for token in found]), want, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "granite", "olmo2", "gemma3"])
def test_a_mixed_batch_gives_what_peft_gives(family: str, tmp_path: Path) -> None:
    write_model(tmp_path / "base", family)
    adapters = write_adapters(tmp_path / "base", tmp_path)
    engine = engine_of(open_model(tmp_path / "base"), adapters).engine
    wrapped = peft_model(tmp_path / "base", adapters)
    asked = {f"{name}-{i}": (name, prompt) for name in (*ADAPTERS, None) for i, prompt in enumerate(PROMPTS)}
    for request_id, (name, prompt) in asked.items():
        engine.add(Request(request_id, prompt, greedy(6, logprobs=1), () if name is None else ((name, 1.0),)))
    outputs = drain(engine)
    for request_id, (name, prompt) in asked.items():
        check(wrapped, prompt, name, outputs[request_id])


def test_an_embedding_and_a_head_of_their_own_are_adapted(base: Path, tmp_path: Path) -> None:
    path = write_adapter(base, tmp_path / "ends", 5, target_modules=["embed_tokens", "lm_head", "q_proj"], r=4)
    engine = engine_of(open_model(base), {"ends": path}).engine
    engine.add(Request("x", PROMPTS[0], greedy(6, logprobs=1), (("ends", 1.0),)))
    check(peft_model(base, {"ends": path}), PROMPTS[0], "ends", drain(engine)["x"])


def test_a_rank_may_be_more_than_a_weight_has_rows(base: Path, tmp_path: Path) -> None:
    path = write_adapter(base, tmp_path / "wide", 6, target_modules=["k_proj", "v_proj"], r=20)
    engine = engine_of(open_model(base), {"wide": path}).engine
    engine.add(Request("x", PROMPTS[0], greedy(6, logprobs=1), (("wide", 1.0),)))
    check(peft_model(base, {"wide": path}), PROMPTS[0], "wide", drain(engine)["x"])


def test_a_tied_embedding_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "base", tie_word_embeddings=True)
    path = write_adapter(tmp_path / "base", tmp_path / "a", 0, target_modules=["embed_tokens"], r=4)
    with pytest.raises(EngineError, match="also uses as output head"):
        engine_of(open_model(tmp_path / "base"), {"a": path})


def test_an_exported_expert_with_a_tied_embedding_is_served(tmp_path: Path) -> None:
    """Its adapter has the same factors for embedding and head; a head with other factors is refused."""
    parts = {EMBEDDING: factors(33, 32, 3), UP: factors(48, 32, 2)}
    bundle = write(tmp_path / "bundle", weights=(), norms=(), low_rank=parts).bundle
    adapter = tmp_path / "adapter"
    export_adapter(bundle, "one", adapter)
    prompt, found = (5, 4, 3), []
    for served, adapters in ((bundle, None), (open_model(bundle.backbone_dir), {"one": adapter})):
        engine = engine_of(served, adapters).engine
        engine.add(Request("x", prompt, greedy(6, logprobs=1), (("one", 1.0),)))
        found.append([token for output in drain(engine)["x"] for token in output.tokens])
    assert [token.token for token in found[0]] == [token.token for token in found[1]]
    assert [token.logprob for token in found[0]] == pytest.approx([token.logprob for token in found[1]], abs=1e-3)

    tensors = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in tensors if "lm_head" in name)
    save_file(tensors | {name: tensors[name] + 1}, adapter / "adapter_model.safetensors")
    with pytest.raises(EngineError, match="also uses as output head"):
        engine_of(open_model(bundle.backbone_dir), {"one": adapter})


def test_a_mix_adds_the_products(base: Path, adapters: dict[str, Path]) -> None:
    engine = engine_of(open_model(base), adapters).engine
    gates = (("all", 0.5), ("attention", 0.25))
    engine.add(Request("x", PROMPTS[0], greedy(1, logprobs=1), gates))
    (token,) = (token for output in drain(engine)["x"] for token in output.tokens)
    import peft

    model = peft_model(base, adapters)
    assert isinstance(model, peft.PeftModel)
    model.add_weighted_adapter(["all", "attention"], [0.5, 0.25], "mix", combination_type="cat")
    logprobs = peft_logits(model, PROMPTS[0], "mix")[-1].log_softmax(-1)
    assert token.token == int(logprobs.argmax())
    assert token.logprob == pytest.approx(float(logprobs.max()), abs=2e-4)


def test_adapters_beside_the_experts_of_a_bundle(base: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    made: TinyBundle = write_bundle(
        tmp_path / "bundle",
        write_model(tmp_path / "m"),
        lambda digest: [random_expert(write_model(tmp_path / "m"), digest, "own", 3)],
    )
    engine = engine_of(made.bundle, adapters).engine
    for name in ("own", "all"):
        engine.add(Request(name, PROMPTS[0], greedy(6, logprobs=1), ((name, 1.0),)))
    outputs = drain(engine)
    assert [t.token for o in outputs["own"] for t in o.tokens] == made.greedy(PROMPTS[0], 6, ("own", 1.0))
    check(peft_model(base, adapters), PROMPTS[0], "all", outputs["all"])
    with pytest.raises(EngineError, match="has the name of an expert"):
        engine_of(made.bundle, {"own": adapters["all"]})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_plain_model_is_served_without_adapters(base: Path, dtype: str) -> None:
    engine = engine_of(open_model(base), dtype=dtype).engine
    assert engine.experts.slots == 0
    engine.add(Request("x", PROMPTS[0], greedy(3)))
    assert sum(len(output.tokens) for output in drain(engine)["x"]) == 3


def test_ranks(base: Path, adapters: dict[str, Path]) -> None:
    model = open_model(base)
    with pytest.raises(EngineError, match=r"'attention' has rank 8; the server's largest is 4: start it with --max-lo"):
        engine_of(model, adapters, max_lora_rank=4)
    engine = engine_of(model, enable_lora=True, max_lora_rank=4).engine
    assert engine.experts.slots == 8
    with pytest.raises(RuntimeError, match="has rank 8, more than the server's 4"):
        engine.experts.load("attention", adapters["attention"])
    engine.experts.load("all", adapters["all"])
    with pytest.raises(RuntimeError, match="no room for LoRA adapters"):
        engine_of(model).engine.experts.load("all", adapters["all"])


def test_an_adapter_of_another_base(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_model(tmp_path / "wider", hidden_size=96, head_dim=16)
    path = write_adapter(tmp_path / "wider", tmp_path / "a", 0, target_modules=["q_proj"], r=4)
    with pytest.raises(EngineError, match="q_proj"):
        engine_of(open_model(base), {"a": path})
    assert "was trained on" in caplog.text
    write_model(tmp_path / "deeper", num_hidden_layers=4)
    path = write_adapter(tmp_path / "deeper", tmp_path / "b", 0, target_modules=["q_proj"], r=4)
    with pytest.raises(EngineError, match=r"model\.layers\.3\.self_attn\.q_proj\.weight.*does not have"):
        engine_of(open_model(base), {"b": path})


def test_faults_name_the_adapter(base: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="adapter 'a' cannot be served: no adapter directory at"):
        engine_of(open_model(base), {"a": tmp_path / "nowhere"})
    with pytest.raises(ModelError, match="holds"):
        (tmp_path / "odd").mkdir()
        (tmp_path / "odd" / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
        (tmp_path / "odd" / "model.safetensors").write_bytes(b"")
        engine_of(open_model(tmp_path / "odd"))
