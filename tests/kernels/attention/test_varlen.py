"""How torch's attention for sequences of different lengths is called; a stand-in computes what it does on a GPU."""

from typing import Any

import pytest
import torch

from kernels.attention import AttentionBatch, PaddedDecodes, paged_attention
from kernels.attention.reference import paged_attention_reference
from kernels.attention.varlen import DECODE_SPLITS, answers, attends, on_device
from tests.kernels.attention import flash


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The CPU stands for a GPU that has FlashAttention; what is asked of it."""
    found: list[dict[str, Any]] = []

    def spy(*positional: Any, **named: Any) -> torch.Tensor:
        found.append(flash.SIGNATURE.bind(*positional, **named).arguments)
        return flash.attend(*positional, **named)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", spy)
    monkeypatch.setattr("kernels.attention.varlen.on_device", lambda _: True)
    return found


def made(sequences: int, tokens: int, heads: int = 4, kv: int = 2) -> tuple[torch.Tensor, ...]:
    query = torch.randn(tokens, heads, 8).to(torch.bfloat16)
    keys, values = (torch.randn(2 * sequences, 256, kv, 8).to(torch.bfloat16) for _ in range(2))
    tables = torch.randperm(2 * sequences).to(torch.int32).view(sequences, 2)
    return query, keys, values, tables


@pytest.mark.parametrize("window", [None, 5, 300])
@pytest.mark.parametrize(
    ("contexts", "queries"), [((1, 40, 300), (1, 1, 1)), ((70, 9, 400), (1, 9, 150)), ((260, 30), (260, 30))]
)
def test_prompts_and_sequences_that_decode_in_one_call(
    contexts: tuple[int, ...], queries: tuple[int, ...], window: int | None, calls: list[dict[str, Any]]
) -> None:
    query, keys, values, tables = made(len(contexts), sum(queries))
    plan = AttentionBatch.build(tables, contexts, queries, 256, window)
    found = paged_attention(query, keys, values, plan)
    want = paged_attention_reference(query.double(), keys, values, plan, 8**-0.5)
    torch.testing.assert_close(found.double(), want, rtol=1e-2, atol=1e-2)
    (call,) = calls
    assert call["num_splits"] == (DECODE_SPLITS if max(queries) == 1 else 1)
    assert call["window_size"] == ((-1, -1 if max(queries) == 1 else 0) if window is None else (window - 1, 0))


@pytest.mark.parametrize("heads", [(4, 2), (4, 4)])
def test_a_captured_step_reads_its_lengths_on_the_device(heads: tuple[int, int], calls: list[dict[str, Any]]) -> None:
    query, keys, values, tables = made(3, 3, *heads)
    lengths = torch.tensor([1, 40, 300])
    found = paged_attention(query, keys, values, PaddedDecodes.over(tables, lengths, 512, 256, 20))
    plan = AttentionBatch.build(tables, lengths.tolist(), [1] * 3, 256, 20)
    want = paged_attention_reference(query.double(), keys, values, plan, 8**-0.5)
    torch.testing.assert_close(found.double(), want, rtol=1e-2, atol=1e-2)
    assert (calls[0]["max_q"], calls[0]["max_k"], calls[0]["window_size"]) == (1, 512, (19, 0))


@pytest.mark.parametrize(
    ("dtype", "head_dim", "block_size", "softcap", "taken"),
    [
        (torch.bfloat16, 128, 256, None, True),
        (torch.float16, 64, 512, None, True),
        (torch.float32, 128, 256, None, False),
        (torch.bfloat16, 264, 256, None, False),
        (torch.bfloat16, 60, 256, None, False),
        (torch.bfloat16, 128, 16, None, False),
        (torch.bfloat16, 128, 256, 50.0, False),
    ],
)
@pytest.mark.usefixtures("calls")
def test_what_is_taken(dtype: torch.dtype, head_dim: int, block_size: int, softcap: float | None, taken: bool) -> None:
    assert attends(torch.device("cpu"), dtype, head_dim, block_size, softcap) is taken


def test_a_cpu_has_none() -> None:
    assert not on_device(torch.device("cpu"))


@pytest.mark.usefixtures("calls")
def test_a_device_that_answers() -> None:
    assert answers(torch.device("cpu"))


def test_a_device_that_does_not_answer_gathers_its_blocks(caplog: pytest.LogCaptureFixture) -> None:
    """Torch has no FlashAttention for a paged cache on a CPU, and says so when it is called."""
    with caplog.at_level("WARNING", logger="overtone"):
        assert not answers(torch.device("cpu"))
    assert "does not take the KV cache on cpu, whose blocks are gathered" in caplog.text
