"""Packed sequences: the system prompt once a row."""

import pytest
import torch
from transformers import PreTrainedModel

from merge.experts.packing import common_beginning, pack, packed_batches
from merge.experts.running import assign
from tests.merge.experts.conftest import World

SHARED = list(range(3, 15))
PAIRS = [([*SHARED, 5, 6], [7, 2]), ([*SHARED, 9], [8, 8, 2]), ([*SHARED, 4, 4, 4, 4], [2])]


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_a_sequence_has_the_logits_it_has_alone(world: World, model: PreTrainedModel, rows: int) -> None:
    assign(model, world.fine_tunes["one"])
    packed = pack(PAIRS, rows)
    assert len(packed.ids) == min(rows, 3)
    with torch.inference_mode():
        found = model(**packed.arguments).logits[packed.predicts]
        alone = {
            tuple(reply): model(input_ids=torch.tensor([[*prompt, *reply]])).logits[0, len(prompt) - 1 : -1]
            for prompt, reply in PAIRS
        }
    targets = packed.ids.roll(-1, 1)[packed.predicts].tolist()
    place = 0
    while alone:
        reply = next(reply for reply in alone if list(reply) == targets[place : place + len(reply)])
        torch.testing.assert_close(found[place : place + len(reply)], alone.pop(reply), rtol=1e-4, atol=1e-4)
        place += len(reply)
    assert place == len(targets)


def test_sequences_are_blind_to_each_other() -> None:
    packed = pack([((1, 2, 3), (4, 9)), ((1, 2, 5), (6, 9))], rows=1)
    assert packed.mask is not None
    assert packed.positions is not None
    assert packed.ids.tolist() == [[1, 2, 3, 4, 9, 5, 6, 9]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 4, 2, 3, 4]]
    assert packed.predicts[0].nonzero().flatten().tolist() == [2, 3, 5, 6]
    assert packed.mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 0, 1, 1, 1],
    ]


def test_padding_is_seen_by_no_token_of_a_sequence() -> None:
    packed = pack([((1, 2, 3, 4, 5), (6, 9)), ((1, 2), (7, 9))], rows=2)
    assert packed.mask is not None
    row = int((packed.ids == 7).any(1).nonzero()[0])
    last = int(packed.real[row].nonzero()[-1])
    assert last + 1 < packed.ids.shape[1]
    assert not packed.mask[row, 0, : last + 1, last + 1 :].any()
    assert packed.mask.any(-1).all()


def test_each_prompt_keeps_a_token_for_itself() -> None:
    assert common_beginning([[1, 2, 3], [1, 2, 3]]) == 2
    assert common_beginning([[1, 2, 3], [1, 5]]) == 1
    assert common_beginning([[4], [4, 5]]) == 0


def test_only_what_gains_from_it_is_packed(model: PreTrainedModel) -> None:
    prompts, replies = zip(*PAIRS, strict=True)
    (batch,) = packed_batches(model, prompts, replies, 8)
    assert batch.mask is not None
    assert int(batch.real.sum()) < sum(len(prompt) + len(reply) for prompt, reply in PAIRS)
    short = [prompt[-3:] for prompt in prompts]
    assert packed_batches(model, short, replies, 8)[0].mask is None
    model.config.sliding_window = 16
    assert packed_batches(model, prompts, replies, 8)[0].mask is None
    model.config.sliding_window = None
    model.config.architectures = ["Lfm2ForCausalLM"]
    assert packed_batches(model, prompts, replies, 8)[0].mask is None
