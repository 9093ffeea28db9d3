import string
from pathlib import Path

import jinja2
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from benchmarks.zoo.model import build_tokenizer
from serve.demo.zoo import TASKS

PRINTABLE = "".join(c for c in string.printable if c not in "\r\t\x0b\x0c")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(256)


def test_one_token_a_character_after_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer(PRINTABLE)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert len(ids) == len(PRINTABLE) + 1
    assert len(set(ids)) == len(ids)
    assert len(tokenizer) == len(PRINTABLE) + 4


def test_round_trip(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = [PRINTABLE, "", " ", "\n", "  two  spaces . and don't n't 's \n\n end "]
    texts += [f"{e.prompt}\n{e.answer}" for task in TASKS for e in task.generate("train", 5, 0)]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_decoding_token_by_token_gives_the_same_text(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("a b, c\nd", add_special_tokens=False)["input_ids"]
    assert "".join(tokenizer.decode([i]) for i in ids) == "a b, c\nd"


@pytest.mark.parametrize("text", ["é", "日本", "🙂", "\t", "\r", "\x00", "­"])
def test_other_characters_become_unk_one_for_one(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(f"a{text}b", add_special_tokens=False)["input_ids"]
    assert ids[1:-1] == [tokenizer.unk_token_id] * len(text)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab"


def test_saving_and_loading_changes_nothing(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(PRINTABLE)["input_ids"] == tokenizer(PRINTABLE)["input_ids"]
    assert loaded.decode(loaded(PRINTABLE)["input_ids"], skip_special_tokens=True) == PRINTABLE
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded.model_max_length == 256


def test_a_chat_is_rendered_as_the_training_text(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = [{"role": "user", "content": "Spell cat backwards."}, {"role": "assistant", "content": "tac"}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False)
    assert rendered == "<bos>Spell cat backwards.\ntac<eos>"


def test_the_generation_prompt_is_the_newline(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = [{"role": "user", "content": "Spell cat backwards."}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert ids == tokenizer("Spell cat backwards.\n")["input_ids"]


def test_a_system_message_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(jinja2.TemplateError, match="user and assistant messages only"):
        tokenizer.apply_chat_template([{"role": "system", "content": "Be brief."}], tokenize=False)
