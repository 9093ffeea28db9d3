import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from merge.bundle import own_settings
from merge.checkpoint import Checkpoint, open_checkpoint
from merge.experts import (
    CalibrationConfig,
    CalibrationError,
    Example,
    PromptEncoder,
    encode_prompts,
    own_encoders,
    prompt_encoder,
)
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
    encoder = prompt_encoder(chat, SETTINGS)
    assert encoder.encode(Example("hi")) == [1, *ids("user: hi. bot: ")]


def test_messages_are_rendered_as_they_are(chat: Checkpoint) -> None:
    encoder = prompt_encoder(chat, SETTINGS)
    messages = (Message("system", "be kind"), Message("user", "hi"))
    assert encoder.encode(Example("hi", messages)) == [1, *ids("system: be kind.user: hi. bot: ")]
    with pytest.raises(CalibrationError, match="the chat template does not take 'hi': no tools"):
        encoder.encode(Example("hi", (Message("user", "hi"), Message("tool", "x"))))


def test_without_a_template_prompts_are_taken_as_they_stand(plain: Checkpoint, chat: Checkpoint) -> None:
    none = CalibrationConfig(file=Path("p"), chat_template="none")
    for encoder in (prompt_encoder(plain, SETTINGS), prompt_encoder(chat, none)):
        assert encoder.encode(Example("hi")) == [1, *ids("hi")]
        assert encoder.encode(Example("<bos>user: hi")) == [1, *ids("user: hi")]
        with pytest.raises(CalibrationError, match="'hi' is given as messages, but no chat template is used"):
            encoder.encode(Example("hi", (Message("user", "hi"),)))


def test_a_rendered_prompt_is_not_rendered_again(chat: Checkpoint) -> None:
    encoder = prompt_encoder(chat, SETTINGS)
    with pytest.raises(
        CalibrationError, match=r"contains the special token '<bos>'.* calibration\.chat_template: none"
    ):
        encoder.encode(Example("<bos>user: hi. bot: "))


@pytest.mark.parametrize("form", ["file", "text", "named"])
@pytest.mark.parametrize("base", ["plain", "chat"])
def test_a_fine_tunes_own_template(request: pytest.FixtureRequest, tmp_path: Path, base: str, form: str) -> None:
    model: Checkpoint = request.getfixturevalue(base)
    mine = TEMPLATE.replace("bot", "me")
    if form == "file":
        (tmp_path / "chat_template.jinja").write_text(mine)
    else:
        named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": mine}]
        value = mine if form == "text" else named
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    own = {"mine": own_settings(model.path, tmp_path), "other": own_settings(model.path, model.path)}
    usual = prompt_encoder(model, SETTINGS)
    encoders = own_encoders(usual, own, SETTINGS)
    assert encoders["mine"].encode(Example("hi")) == [1, *ids("user: hi. me: ")]
    assert encoders["other"] is usual
    none = CalibrationConfig(file=Path("p"), chat_template="none")
    assert own_encoders(prompt_encoder(model, none), own, none)["mine"].template is None


def test_prompts_that_fill_the_context_are_left_out(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = PromptEncoder(tokenizer, None)
    examples = {"a": [Example("hi"), Example("hello"), Example("hi there")]}
    encoders = {"a": encoder}
    found, told = encode_prompts(encoders, examples, SETTINGS, context=6)
    assert found == {"a": [[1, *ids("hi")]]}
    assert told == ["2 of 3 prompts of a fill the context of 6 tokens: left out"]
    assert encode_prompts(encoders, examples, SETTINGS, None) == ({"a": [encoder.encode(e) for e in examples["a"]]}, [])
    with pytest.raises(CalibrationError, match="every prompt of a fills the context of 3 tokens"):
        encode_prompts(encoders, examples, SETTINGS, context=3)
