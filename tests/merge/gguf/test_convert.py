"""GGUF files as inputs, on tiny models."""

from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

from merge.checkpoint import CheckpointError, open_checkpoint
from merge.gguf import as_directory
from merge.gguf.convert import unpermuted
from merge.gguf.rope import llama3_factors
from tests.merge.gguf.files import F32, rounded, write_gguf
from tests.merge.tiny import tiny_tokenizer

IDS = torch.tensor([[1, 5, 9, 14, 3, 7]])
SIZES = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2, "rms_norm_eps": 1e-5,
    "head_dim": 16,
}  # fmt: skip
OWN = {
    "granite": {
        "granite.attention.scale": 0.1,
        "granite.embedding_scale": 3.0,
        "granite.residual_scale": 0.5,
        "granite.logit_scale": 2.0,
    }
}
MULTIPLIERS = {"attention_multiplier": 0.1, "embedding_multiplier": 3.0, "residual_multiplier": 0.5}


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERTONE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


def model(kind: str, tied: bool = False, **more: object) -> PreTrainedModel:
    own: dict[str, float] = {**MULTIPLIERS, "logits_scaling": 2.0} if kind == "granite" else {}
    own |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} if kind == "smollm3" else {}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **own, "tie_word_embeddings": tied, **more})
    made: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


def logits(made: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = made(input_ids=IDS).logits
    return found


def converted(path: Path) -> PreTrainedModel:
    found: PreTrainedModel = AutoModelForCausalLM.from_pretrained(as_directory(path), dtype=torch.float32)
    return found.eval()


@pytest.mark.parametrize("kind", ["llama", "granite", "qwen2", "qwen3", "olmo2", "smollm3"])
@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_the_models(tmp_path: Path, kind: str, tied: bool) -> None:
    made = model(kind, tied)
    found = converted(write_gguf(tmp_path / "tiny.gguf", made, more=OWN.get(kind)))
    torch.testing.assert_close(logits(found), logits(made), rtol=0, atol=1e-5)
    assert found.config.tie_word_embeddings == tied


def test_layers_without_rotation_and_norms_beside_1_are_the_models(tmp_path: Path) -> None:
    deep = model("smollm3", num_hidden_layers=5)
    assert deep.config.no_rope_layers == [1, 1, 1, 0, 1]
    found = converted(write_gguf(tmp_path / "smollm3.gguf", deep))
    assert found.config.no_rope_layers == deep.config.no_rope_layers
    torch.testing.assert_close(logits(found), logits(deep), rtol=0, atol=1e-5)
    gemma = model("gemma", tied=True)
    found = converted(write_gguf(tmp_path / "gemma.gguf", gemma, more={"gemma.attention.key_length": 16}))
    torch.testing.assert_close(logits(found), logits(gemma), rtol=0, atol=1e-5)
    norms = {name: weight for name, weight in gemma.named_parameters() if weight.ndim == 1}
    for name, weight in found.named_parameters():
        if name in norms:
            torch.testing.assert_close(weight, norms[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0, GGMLQuantizationType.F16])
def test_quantised_weights_are_multiplied_out(tmp_path: Path, kind: GGMLQuantizationType) -> None:
    made = model("llama")
    path = write_gguf(tmp_path / "tiny.gguf", made, kind)
    found = open_checkpoint(as_directory(path))
    stored = torch.float16 if kind == GGMLQuantizationType.F16 else torch.bfloat16
    assert {info.dtype for info in found.tensors.values()} == {stored}
    assert found.config["torch_dtype"] == str(stored).removeprefix("torch.")
    if stored == torch.bfloat16:
        torch.testing.assert_close(logits(converted(path)), logits(rounded(made, kind)), rtol=0, atol=1e-5)


def test_heads_are_put_in_order_as_transformers_does_it() -> None:
    weight = torch.randn(32, 8)
    processor = LlamaTensorProcessor({"num_attention_heads": 4, "num_key_value_heads": 2})
    for name, heads in (("blk.0.attn_q.weight", 4), ("blk.0.attn_k.weight", 2)):
        theirs = processor.process(weight.numpy(), name).weights
        assert torch.equal(unpermuted(weight, heads), torch.from_numpy(theirs.copy()))


def test_a_file_is_converted_once_and_again_when_it_changes(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", model("llama"))
    told: list[str] = []
    first = as_directory(path, told.append)
    assert first == as_directory(path, told.append)
    assert first.name == "tiny"
    assert len(told) == 1
    write_gguf(path, model("llama", tied=True))
    assert as_directory(path) != first
    assert not list(first.parent.glob("tmp*"))


def test_the_scaling_of_llama_3_is_recognised(tmp_path: Path) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = {**scaling, "original_max_position_embeddings": 8192, "rope_theta": 500000.0}
    made = model("llama", rope_parameters=rope)
    base = made.model.rotary_emb.inv_freq
    plain = 1 / 500000.0 ** (torch.arange(0, 16, 2) / 16)
    torch.testing.assert_close(plain / base, llama3_factors(500000.0, 16, 8.0))
    path = write_gguf(tmp_path / "tiny.gguf", made, tensors={"rope_freqs.weight": plain / base})
    found = converted(path)
    torch.testing.assert_close(found.model.rotary_emb.inv_freq, base)
    other = write_gguf(tmp_path / "other.gguf", made, tensors={"rope_freqs.weight": torch.linspace(1, 8, 8)})
    with pytest.raises(CheckpointError, match="are not the factors of rope type llama3"):
        as_directory(other)


def test_yarn_is_read(tmp_path: Path) -> None:
    more = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16}
    path = write_gguf(
        tmp_path / "tiny.gguf", model("qwen2"), more={f"qwen2.{key}": value for key, value in more.items()}
    )
    found = open_checkpoint(as_directory(path)).config["rope_scaling"]
    assert found == {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def test_the_tokenizer_is_the_files(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", model("llama"), tokens=True)
    directory = as_directory(path)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("hello", add_special_tokens=False)) == ["he", "l", "l", "o"]
    assert open_checkpoint(directory).config["eos_token_id"] == 0


def test_a_tokenizer_beside_the_file_goes_before_it(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    directory = as_directory(write_gguf(tmp_path / "tiny.gguf", model("llama"), tokens=True))
    assert (directory / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("more", "tensors", "wrong"),
    [
        ({"split.count": 3}, {}, "is one of 3 parts: join them"),
        ({"llama.attention.sliding_window": 16}, {}, r"has the settings attention\.sliding_window"),
        ({"llama.expert_count": 4}, {}, r"lacks blk\.0\.ffn_down_exps\.weight"),
        ({"llama.rope.dimension_count": 8}, {}, r"rope\.dimension_count is 8, but must be 16"),
        ({"llama.rope.scaling.type": "longrope"}, {}, "has the rope scaling 'longrope'"),
        ({}, {"blk.0.attn_q.bias": torch.zeros(64)}, r"holds blk\.0\.attn_q\.bias"),
    ],
)
def test_what_is_not_understood_is_refused(
    tmp_path: Path, more: dict[str, int | str], tensors: dict[str, torch.Tensor], wrong: str
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", model("llama"), more=more, tensors=tensors)
    with pytest.raises(CheckpointError, match=wrong):
        as_directory(path)


def test_other_architectures_and_files_are_refused(tmp_path: Path) -> None:
    write = tmp_path / "other.gguf"
    writer = GGUFWriter(write, "starcoder")
    writer.add_tensor("token_embd.weight", torch.zeros(4, 4).numpy(), raw_dtype=F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="has the architecture 'starcoder'; GGUF files of llama, granite"):
        as_directory(write)
    with pytest.raises(CheckpointError, match="no GGUF file at"):
        as_directory(tmp_path / "nowhere.gguf")
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(CheckpointError, match="is not a readable GGUF file"):
        as_directory(tmp_path / "text.gguf")
    whole = write_gguf(tmp_path / "cut.gguf", model("llama"))
    whole.write_bytes(whole.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match="is not a readable GGUF file"):
        as_directory(whole)
