import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from merge.bundle import BundleError, read_tokenizer
from tests.merge.tiny import tiny_tokenizer

SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
TEXT = "ab<|im_start|>c<|im_end|>d<eos>"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A tokenizer.json that knows no chat tokens."""
    tiny_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def write(directory: Path, name: str = "tokenizer_config.json", **fields: object) -> None:
    (directory / name).write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        (
            "tokenizer_config.json",
            {
                "added_tokens_decoder": {
                    "33": {"content": "<|im_start|>", **SPECIAL},
                    "34": {"content": "<|im_end|>", **SPECIAL},
                }
            },
        ),
        ("tokenizer_config.json", {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}),
        ("tokenizer_config.json", {"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]}),
        ("special_tokens_map.json", {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}),
    ],
    ids=["added_tokens_decoder", "additional_special_tokens", "extra_special_tokens", "special_tokens_map"],
)
def test_tokens_that_stand_beside_tokenizer_json_are_single_ids(
    directory: Path, name: str, fields: dict[str, object]
) -> None:
    write(directory)
    write(directory, name, **fields)
    tokenizer = read_tokenizer(directory)
    assert tokenizer.encode(TEXT, add_special_tokens=False).ids == [4, 5, 33, 6, 34, 7, 2]
    assert tokenizer.encode(TEXT).ids == AutoTokenizer.from_pretrained(directory)(TEXT)["input_ids"]
    assert tokenizer.decode([4, 33, 5], skip_special_tokens=True).replace(" ", "") == "ab"


def test_tokens_named_by_their_role_count(directory: Path) -> None:
    write(directory, eos_token="<|im_end|>")
    assert read_tokenizer(directory).token_to_id("<|im_end|>") == 33


def test_tokenizer_json_alone_is_enough(directory: Path) -> None:
    (directory / "tokenizer_config.json").unlink()
    assert read_tokenizer(directory).encode("ab").ids == [1, 4, 5]


@pytest.mark.parametrize("text", ["{", "[1]", '{"added_tokens_decoder": {"33": 5}}'])
def test_unreadable_files_are_named(directory: Path, text: str) -> None:
    (directory / "tokenizer_config.json").write_text(text)
    with pytest.raises(BundleError, match=r"tokenizer_config\.json or another file beside"):
        read_tokenizer(directory)
    (directory / "tokenizer.json").write_text(text)
    with pytest.raises(BundleError, match=r"readable tokenizer \(tokenizer\.json\)"):
        read_tokenizer(directory)
    (directory / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"has no tokenizer\.json"):
        read_tokenizer(directory)
