import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from kernels.attention import AttentionBatch
from kernels.expert_linear import ExpertBatch
from merge.bundle import Expert, write_expert
from serve.model import Decoder, ForwardBatch, KvCache, ResidualBanks, ResidualShape, load_model
from tests.serve.conftest import random_delta, random_expert, random_model, with_expert

BLOCK = 4
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 6}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    ("llama", {"rope_parameters": LLAMA3}),
    ("llama", {"rope_parameters": YARN}),
    ("llama", {"rope_parameters": {**YARN, "truncate": False, "mscale": 1.0, "mscale_all_dim": 0.8}}),
    ("mistral", {"sliding_window": 7}),
    ("mistral", {"sliding_window": None}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    ("qwen3", {}),
    ("qwen3", {"tie_word_embeddings": True, "attention_bias": True}),
]


def run(decoder: Decoder, sequences: list[list[int]], splits: int = 1, experts: ExpertBatch | None = None) -> Tensor:
    """Logits of every token, the sequences computed together in `splits` steps each; experts only with one step."""
    blocks = -(-max(map(len, sequences)) // BLOCK)
    cache = KvCache.allocate(decoder.config, blocks * len(sequences), BLOCK, decoder.dtype, decoder.device)
    tables = torch.randperm(blocks * len(sequences)).reshape(len(sequences), blocks).to(torch.int32)
    rows: list[list[Tensor]] = [[] for _ in sequences]
    for step in range(splits):
        spans = [(len(s) * step // splits, len(s) * (step + 1) // splits) for s in sequences]
        positions = torch.cat([torch.arange(start, end) for start, end in spans])
        owner = torch.repeat_interleave(torch.tensor([end - start for start, end in spans]))
        batch = ForwardBatch(
            tokens=torch.tensor([t for s, (start, end) in zip(sequences, spans, strict=True) for t in s[start:end]]),
            positions=positions,
            slot_mapping=tables[owner, positions // BLOCK].long() * BLOCK + positions % BLOCK,
            attention={
                window: AttentionBatch.build(tables, [e for _, e in spans], [e - s for s, e in spans], BLOCK, window)
                for window in decoder.windows
            },
            experts=experts,
        )
        with torch.inference_mode():
            logits = decoder.logits(decoder.forward(batch, cache), experts)
        for row, part in zip(rows, logits.split([end - start for start, end in spans]), strict=True):
            row.append(part)
    return torch.cat([torch.cat(row) for row in rows])


def expected(model: PreTrainedModel, sequences: list[list[int]]) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(torch.tensor([s])).logits[0] for s in sequences])


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(97, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize(("family", "settings"), SETTINGS)
def test_logits_are_those_of_transformers(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = random_model(family, **settings)
    model.save_pretrained(tmp_path)
    decoder, sequences = load_model(tmp_path), prompts(33, 6, 17)
    want = expected(model, sequences)
    for splits in (1, 3):
        got = run(decoder, sequences, splits)
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
        assert torch.equal(got.argmax(-1), want.argmax(-1))


def test_positions_beyond_the_original_context_are_stretched(tmp_path: Path) -> None:
    model = random_model(rope_parameters=LLAMA3)
    model.save_pretrained(tmp_path)
    sequences = prompts(200)
    torch.testing.assert_close(
        run(load_model(tmp_path), sequences, 2), expected(model, sequences), atol=2e-4, rtol=1e-3
    )


def test_shards_and_old_config_names_load_alike(tmp_path: Path) -> None:
    model = random_model("llama", rope_parameters=LLAMA3)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    config = json.loads((tmp_path / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "torch_dtype": config.pop("dtype")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    sequences = prompts(9)
    torch.testing.assert_close(run(load_model(tmp_path), sequences), expected(model, sequences), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "settings"),
    [("llama", {"attention_bias": True, "mlp_bias": True}), ("qwen2", {"tie_word_embeddings": True}), ("qwen3", {})],
)
def test_fused_experts_equal_dense_weights(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Each token's logits are those of a dense model whose weights, norms and biases are backbone + experts."""
    model = random_model(family, **settings)
    model.save_pretrained(tmp_path)
    decoder = load_model(tmp_path)
    experts = [
        random_expert(model, "digest", name, seed, entries) for seed, (name, entries) in enumerate([("x", 2), ("y", 4)])
    ]
    fill_slots(decoder, experts, tmp_path)
    sequences = prompts(11, 11, 5, 8)
    mixes = [[(0, 1.0)], [(1, 1.0)], [], [(0, 0.25), (1, 0.75)]]
    slots = [[*(s for s, _ in mix), -1, -1][:2] for mix, s in zip(mixes, sequences, strict=True) for _ in s]
    gates = [[*(g for _, g in mix), 0.0, 0.0][:2] for mix, s in zip(mixes, sequences, strict=True) for _ in s]
    got = run(decoder, sequences, experts=ExpertBatch.from_slots(slots, gates))
    want = torch.cat(
        [
            expected(with_expert(model, [(experts[e], g) for e, g in mix]), [s])
            for mix, s in zip(mixes, sequences, strict=True)
        ]
    )
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    plain = expected(model, sequences)
    assert (want - plain).abs()[:11].max() > 0.5


@pytest.mark.parametrize("tied", [True, False])
def test_residuals_of_embedding_and_head(tied: bool, tmp_path: Path) -> None:
    model = random_model(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    generator = torch.Generator().manual_seed(3)
    names = ["model.embed_tokens.weight"] if tied else ["model.embed_tokens.weight", "lm_head.weight"]
    expert = Expert("x", "digest", 0.1, {name: random_delta((97, 48), 5, generator) for name in names}, {})
    decoder = load_model(tmp_path)
    fill_slots(decoder, [expert], tmp_path)
    sequences = prompts(9, 4)
    got = run(decoder, sequences, experts=ExpertBatch.from_slots([0] * 9 + [-1] * 4))
    want = torch.cat([expected(with_expert(model, [(expert, 1.0)]), sequences[:1]), expected(model, sequences[1:])])
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def fill_slots(decoder: Decoder, experts: list[Expert], folder: Path) -> ResidualBanks:
    paths = [folder / f"{expert.name}.expert" for expert in experts]
    for path, expert in zip(paths, experts, strict=True):
        write_expert(path, expert)
    banks = ResidualBanks(decoder, ResidualShape.of(paths), len(experts))
    for slot, expert in enumerate(experts):
        banks.load(slot, banks.pack(expert))
    return banks
