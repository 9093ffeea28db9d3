import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from benchmarks.zoo import models_dir
from benchmarks.zoo.real.packing import encode, pack
from benchmarks.zoo.task import Example


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_an_example_has_the_logits_it_has_alone(rows: int):
    tokenizer = AutoTokenizer.from_pretrained(models_dir() / "base")
    model = LlamaForCausalLM.from_pretrained(models_dir() / "base", dtype=torch.float32)
    examples = [Example("Write 7 in words.", "seven"), Example("Write 1000", "M"), Example("Write 7 in Greek.", "epta")]
    encoded = [encode(tokenizer, example) for example in examples]
    packed = pack(encoded, rows)
    assert len(packed.ids) == min(rows, 3)
    with torch.inference_mode():
        output = model(input_ids=packed.ids, attention_mask=packed.mask, position_ids=packed.positions)
        found = output.logits.flatten(0, 1)[packed.predicting]
        alone = {
            tuple(answer): model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
            for prompt, answer in encoded
        }
    place = 0
    for _ in encoded:
        answer = next(
            answer for answer in alone if list(answer) == packed.targets[place : place + len(answer)].tolist()
        )
        torch.testing.assert_close(found[place : place + len(answer)], alone.pop(answer), rtol=1e-4, atol=1e-4)
        place += len(answer)
    assert place == len(packed.targets)
    assert not alone


def test_the_end_of_the_turn_is_predicted_and_not_read():
    packed = pack([((1, 2, 3), (4, 9)), ((1, 2, 5), (6, 9))], rows=1)
    assert packed.ids.tolist() == [[1, 2, 3, 4, 5, 6]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 2, 3]]
    assert packed.predicting.tolist() == [2, 3, 4, 5]
    assert packed.targets.tolist() == [4, 9, 6, 9]
    assert packed.mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 1],
    ]


def test_padding_is_seen_by_no_token_of_an_example():
    packed = pack([((1, 2, 3, 4, 5), (6, 9)), ((1, 2), (7, 9))], rows=2)
    row = int((packed.ids == 7).any(1).nonzero()[0])
    last = int((packed.ids[row] == 7).nonzero()[0])
    assert last + 1 < packed.ids.shape[1]
    assert not packed.mask[row, 0, : last + 1, last + 1 :].any()
    assert packed.mask.any(-1).all()
