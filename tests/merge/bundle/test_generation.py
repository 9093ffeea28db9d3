import json
from pathlib import Path

import pytest

from merge.bundle import BundleError, GenerationSettings, TemplateText, own_settings, read_template
from tests.merge.tiny import save_tiny

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
OWN = GenerationSettings(
    (2, 7), TemplateText("{{ eos_token }}", {"eos_token": "z", "pad_token": "-"}, "T"), {"top_k": 5}
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny(tmp_path_factory.mktemp("model"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def write(folder: Path, name: str, **fields: object) -> Path:
    (folder / name).write_text(json.dumps(fields))
    return folder


def test_what_a_header_says_is_read_as_it_was_written() -> None:
    read = GenerationSettings.parse(json.loads(json.dumps(OWN.as_json())))
    assert (read.end_tokens, read.sampling) == ((2, 7), {"top_k": 5})
    assert read.chat_template == TemplateText("{{ eos_token }}", {"eos_token": "z"}, "T")
    assert GenerationSettings.parse({}) == GenerationSettings()
    assert not GenerationSettings()
    assert GenerationSettings(sampling={})


@pytest.mark.parametrize(
    "value",
    [{"eos_token_id": 3}, {"eos_token_id": [True]}, {"chat_template": {}}, {"sampling": {"top_p": 7}}, {"sampling": 1}],
)
def test_damaged_settings_are_refused(value: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        GenerationSettings.parse(value)


def test_what_is_the_same_or_not_said_is_not_own(model: Path, tmp_path: Path) -> None:
    assert own_settings(model, model) == own_settings(model, tmp_path) == GenerationSettings()
    (tmp_path / "chat_template.jinja").write_text(f"{TEMPLATE}\n")
    write(tmp_path, "generation_config.json", eos_token_id=[2], temperature=1.0, top_k=-1, do_sample=True)
    write(tmp_path, "tokenizer_config.json", pad_token="z")  # no template names it
    assert own_settings(model, tmp_path) == GenerationSettings()


def test_each_part_is_found(model: Path, tmp_path: Path) -> None:
    write(tmp_path, "generation_config.json", eos_token_id=[2, 7], temperature=0.6, max_new_tokens=9)
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}mine")
    own = own_settings(model, tmp_path)
    assert (own.end_tokens, own.sampling) == ((2, 7), {"temperature": 0.6})
    assert own.chat_template is not None
    assert (own.chat_template.source, own.chat_template.used) == ("{{ bos_token }}mine", {"bos_token": "<bos>"})


def test_the_nearest_directory_that_has_a_part_gives_it(model: Path, tmp_path: Path) -> None:
    adapter, beneath = tmp_path / "adapter", tmp_path / "beneath"
    adapter.mkdir()
    beneath.mkdir()
    (adapter / "chat_template.jinja").write_text("adapter's")
    (beneath / "chat_template.jinja").write_text("model's")
    write(beneath, "generation_config.json", eos_token_id=5)
    own = own_settings(model, adapter, beneath)
    assert own.chat_template is not None
    assert (own.chat_template.source, own.end_tokens, own.sampling) == ("adapter's", (5,), None)
    write(beneath, "generation_config.json", eos_token_id=5, top_p=0.5)
    write(adapter, "generation_config.json", eos_token_id=6)
    own = own_settings(model, adapter, beneath)
    assert (own.end_tokens, own.sampling) == ((6,), None)


def test_a_file_without_sampling_takes_the_backbones_away(model: Path, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    write(base, "generation_config.json", eos_token_id=2, temperature=0.6)
    assert own_settings(base, model).sampling == {}


def test_another_end_token_of_the_tokenizer_ends_replies_too(model: Path, tmp_path: Path) -> None:
    write(tmp_path, "tokenizer_config.json", eos_token="z")
    own = own_settings(model, tmp_path)
    assert own.end_tokens == (2, 29)
    # The template names it, so that it makes other prompts.
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    template = own_settings(model, tmp_path).chat_template
    assert template is not None
    assert template.used == {"bos_token": "<bos>", "eos_token": "z"}
    write(tmp_path, "tokenizer_config.json", eos_token="<unheard>")
    assert own_settings(model, tmp_path).end_tokens is None


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("generation_config.json", '{"eos_token_id": 33}', "names 33, but the model has 33 tokens"),
        ("generation_config.json", '{"eos_token_id": "a"}', "it must be a token id or a list of token ids"),
        ("generation_config.json", '{"min_p": 2}', "generation_config.json: min_p is 2; it must be from 0 to 1"),
        ("generation_config.json", '{"top_k": 1.5}', "top_k is 1.5; it must be an integer of at least -1"),
        ("generation_config.json", "{", "not valid JSON"),
        ("tokenizer_config.json", "{", "not valid JSON"),
    ],
)
def test_files_that_say_something_impossible(model: Path, tmp_path: Path, file: str, text: str, message: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(BundleError, match=message):
        own_settings(model, tmp_path)


def test_settings_that_cannot_be_read_are_not_called_invalid(model: Path, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").mkdir()
    with pytest.raises(BundleError, match="generation_config.json cannot be read: Is a directory"):
        own_settings(model, tmp_path)


def test_templates_for_tools_count(model: Path, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")
    own = own_settings(model, tmp_path).chat_template
    assert own is not None
    assert (own.source, own.for_tools) == (TEMPLATE, "with tools")
    read = read_template(tmp_path)
    assert read is not None
    assert read.tool_source == "with tools"
