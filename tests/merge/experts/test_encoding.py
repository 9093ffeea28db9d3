import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from merge.checkpoint import Checkpoint, open_checkpoint
from merge.experts import CalibrationConfig, CalibrationError, Example, PromptEncoder, encode_prompts, prompt_encoder
from merge.experts.examples import Message
from tests.merge.tiny import save_tiny, tiny_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}.{% endfor %}{% if add_generation_prompt %} bot: {% endif %}"
)
SETTINGS = CalibrationConfig(file=Path("prompts.jsonl"))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(save_tiny(tmp_path_factory.mktemp("plain")))


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = save_tiny(tmp_path_factory.mktemp("chat"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return open_checkpoint(folder)


def ids(text: str) -> list[int]:
    found: list[int] = tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]
    return found


def test_a_plain_prompt_is_one_user_message_and_begins_once(chat: Checkpoint) -> None:
    encoder, told = prompt_encoder(chat, [], SETTINGS)
    assert told == []
    assert encoder.encode(Example("hi")) == [1, *ids("user: hi. bot: ")]


def test_messages_are_rendered_as_they_are(chat: Checkpoint) -> None:
    encoder, _ = prompt_encoder(chat, [], SETTINGS)
    messages = (Message("system", "be kind"), Message("user", "hi"))
    assert encoder.encode(Example("hi", messages)) == [1, *ids("system: be kind.user: hi. bot: ")]
    with pytest.raises(CalibrationError, match="the chat template does not take 'hi': no tools"):
        encoder.encode(Example("hi", (Message("user", "hi"), Message("tool", "x"))))


def test_without_a_template_prompts_are_taken_as_they_stand(plain: Checkpoint, chat: Checkpoint) -> None:
    none = CalibrationConfig(file=Path("p"), chat_template="none")
    for encoder, _ in (prompt_encoder(plain, [plain], SETTINGS), prompt_encoder(chat, [], none)):
        assert encoder.encode(Example("hi")) == [1, *ids("hi")]
        assert encoder.encode(Example("<bos>user: hi")) == [1, *ids("user: hi")]
        with pytest.raises(CalibrationError, match="'hi' is given as messages, but no chat template is used"):
            encoder.encode(Example("hi", (Message("user", "hi"),)))


def test_a_rendered_prompt_is_not_rendered_again(chat: Checkpoint) -> None:
    encoder, _ = prompt_encoder(chat, [], SETTINGS)
    with pytest.raises(
        CalibrationError, match=r"contains the special token '<bos>'.* calibration\.chat_template: none"
    ):
        encoder.encode(Example("<bos>user: hi. bot: "))


@pytest.mark.parametrize("form", ["file", "text", "named"])
def test_a_fine_tunes_template_helps_a_base_without_one(plain: Checkpoint, tmp_path: Path, form: str) -> None:
    if form == "file":
        (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    else:
        named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": TEMPLATE}]
        value = TEMPLATE if form == "text" else named
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    encoder, told = prompt_encoder(plain, [plain, Checkpoint(tmp_path, {}, {})], SETTINGS)
    assert encoder.encode(Example("hi")) == [1, *ids("user: hi. bot: ")]
    assert "the base has no chat template" in told[0]
    assert str(tmp_path) in told[0]


def test_prompts_that_fill_the_context_are_left_out(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = PromptEncoder(tokenizer, None)
    examples = {"a": [Example("hi"), Example("hello"), Example("hi there")]}
    found, told = encode_prompts(encoder, examples, SETTINGS, context=6)
    assert found == {"a": [[1, *ids("hi")]]}
    assert told == ["2 of 3 prompts of a fill the context of 6 tokens: left out"]
    assert encode_prompts(encoder, examples, SETTINGS, None) == ({"a": [encoder.encode(e) for e in examples["a"]]}, [])
    with pytest.raises(CalibrationError, match="every prompt of a fills the context of 3 tokens"):
        encode_prompts(encoder, examples, SETTINGS, context=3)
