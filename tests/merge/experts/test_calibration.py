import torch
from transformers import PreTrainedModel

from merge.experts.calibration import continue_greedily, make_batches
from merge.experts.running import assign
from tests.merge.experts.conftest import World

PROMPTS = [[1, 5, 6, 7], [1, 9], [1, 5, 5, 5, 5, 5, 20], [1, 30, 31]]


def test_batched_continuations_equal_single_ones(world: World, model: PreTrainedModel) -> None:
    assign(model, world.fine_tunes["one"])

    def alone(prompt: list[int]) -> list[int]:
        ids = list(prompt)
        for _ in range(6):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        return ids[len(prompt) :]

    expected = [alone(prompt) for prompt in PROMPTS]
    assert continue_greedily(model, PROMPTS, 6, ()) == expected
    assert continue_greedily(model, PROMPTS, 6, (), batch_size=3) == expected
    end = expected[0][2]
    ended = continue_greedily(model, PROMPTS, 6, {end})
    cut = [reply[: reply.index(end) + 1] if end in reply else reply for reply in expected]
    assert ended == cut
    assert ended != expected


def test_batches_mark_what_is_real_and_what_predicts_the_reply() -> None:
    batches = make_batches([[1, 5, 6], [1, 9], [1, 2]], [[7], [8, 8, 8], [4]], 2)
    assert [batch.ids.tolist() for batch in batches] == [[[1, 2, 4, 0], [1, 5, 6, 7]], [[1, 9, 8, 8, 8]]]
    assert batches[0].real.tolist() == [[True, True, True, False], [True] * 4]
    assert batches[0].predicts.tolist() == [[False, True, False, False], [False, False, True, False]]
    assert batches[1].predicts.tolist() == [[False, True, True, True, False]]
