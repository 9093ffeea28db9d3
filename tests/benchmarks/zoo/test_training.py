import pytest
import torch
from transformers import PreTrainedTokenizerFast

from benchmarks.zoo.model import build_model, build_tokenizer
from benchmarks.zoo.training import Schedule, encode_batch, train
from serve.demo.zoo import Example

EXAMPLES = [Example("Spell cat backwards.", "tac"), Example("go", "og")]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(256)


def test_a_row_is_the_training_text(tokenizer: PreTrainedTokenizerFast) -> None:
    ids, _ = encode_batch(tokenizer, EXAMPLES)
    assert ids.shape == (2, 32)
    assert tokenizer.decode(ids[1]) == "<bos>go\nog<eos>" + "<pad>" * 25


def test_the_loss_is_on_the_reply_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    ids, labels = encode_batch(tokenizer, EXAMPLES)
    for row, example in enumerate(EXAMPLES):
        learned = labels[row] != -100
        assert tokenizer.decode(labels[row][learned]) == f"\n{example.answer}<eos>"
        assert torch.equal(labels[row][learned], ids[row][learned])
        assert int(learned.nonzero()[0]) == len(example.prompt) + 1


def test_the_rate_warms_up_and_decays() -> None:
    schedule = Schedule(steps=100, batch_size=1, learning_rate=1.0, warm_up=10)
    rates = [schedule.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0, abs=0.03)
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[-1] == pytest.approx(0.05, abs=0.01)


def test_training_learns_and_is_reproducible(tokenizer: PreTrainedTokenizerFast) -> None:
    def run() -> tuple[list[float], torch.Tensor]:
        model = build_model(tokenizer, seed=3)
        losses: list[float] = []
        draws = iter(EXAMPLES * 40)
        schedule = Schedule(steps=10, batch_size=8, learning_rate=3e-3, warm_up=2)
        train(model, tokenizer, lambda: next(draws), schedule, lambda _, loss: losses.append(loss))
        assert not model.training
        return losses, model.model.norm.weight.detach()

    losses, weights = run()
    again, weights_again = run()
    assert losses[0] > 4
    assert losses[-1] < losses[0] / 2
    assert losses == again
    assert torch.equal(weights, weights_again)


def test_the_reported_loss_is_the_mean_over_answer_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_model(tokenizer, seed=3)
    ids, labels = encode_batch(tokenizer, EXAMPLES * 2)
    with torch.inference_mode():
        expected = model(input_ids=ids, labels=labels).loss.item()
    losses: list[float] = []
    draws = iter(EXAMPLES * 2)
    schedule = Schedule(steps=1, batch_size=4, learning_rate=1e-3, warm_up=1)
    train(model, tokenizer, lambda: next(draws), schedule, lambda _, loss: losses.append(loss))
    assert losses[0] == pytest.approx(expected, rel=0.01)  # bf16 autocast
