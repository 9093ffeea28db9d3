"""Fine-tunes that do not belong to the base: tensors, config, tokenizer."""

import json
from pathlib import Path

import pytest
import torch

from tests.merge.check.conftest import edit_json, edit_tensors, errors, warnings, write_recipe


def test_names_shapes_and_dtypes(models: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.norm.weight"]
        tensors["surplus"] = torch.zeros(1)
        tensors["model.embed_tokens.weight"] = torch.zeros(35, 32)
        tensors["lm_head.weight"] = tensors["lm_head.weight"].half()

    edit_tensors(models / "two", change)
    found = errors(models, quick=True)
    assert [message.partition(" ")[0] for message in found] == ["models.two:"] * 3
    text = " | ".join(found)
    assert "model.norm.weight is missing" in text
    assert "surplus is not in the base" in text
    assert "model.embed_tokens.weight is [35, 32], the base's is [33, 32]" in text
    assert "list it under exclude" in text
    (warned,) = warnings(models, quick=True)
    assert "lm_head.weight is float16, the base's is float32" in warned


def test_what_is_excluded_may_differ(models: Path) -> None:
    edit_tensors(models / "two", lambda tensors: tensors.update({"score.weight": torch.zeros(2, 32)}))
    edit_tensors(models / "one", lambda tensors: tensors.update({"score.weight": torch.zeros(5, 32)}))
    assert errors(models) == []
    write_recipe(models, exclude=["lm_head.*"])
    assert len(errors(models)) == 2


def test_a_pattern_that_matches_nothing_is_told(models: Path) -> None:
    write_recipe(models, include=["model.*"], exclude=["modell.*"])
    assert warnings(models) == ["recipe: exclude: 'modell.*' matches no tensor of the base"]


def test_another_prefix_is_explained(models: Path) -> None:
    def prefixed(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[f"vit.{name}"] = tensors.pop(name)

    edit_tensors(models / "two", prefixed)
    assert any("start with 'vit.'; save both from the same model class" in message for message in errors(models))


def test_config_fields_by_what_they_do(models: Path) -> None:
    edit_json(
        models / "two" / "config.json",
        num_attention_heads=2, rms_norm_eps=1e-3, max_position_embeddings=128, eos_token_id=1, use_cache=False,
        id2label={"0": "a"},
    )  # fmt: skip
    (models / "two" / "generation_config.json").unlink()
    wrong = errors(models)
    assert len(wrong) == 2
    assert any("num_attention_heads is 2, the base's is 4" in message for message in wrong)
    assert any("rms_norm_eps is 0.001, the base's is 1e-06" in message for message in wrong)
    odd = warnings(models)
    assert len(odd) == 2
    assert any("max_position_embeddings is 128, the base's is 64; the backbone gets the base's" in item for item in odd)
    assert any("its texts end with token 1, the backbone's with token 2" in message for message in odd)


def test_nested_configs_and_older_names(models: Path) -> None:
    for name, extra in (
        ("base", {"rope_theta": 5e5}),
        ("one", {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}),
    ):
        fields = json.loads((models / name / "config.json").read_text())
        fields = {key: value for key, value in fields.items() if not key.startswith("rope_")}
        (models / name / "config.json").write_text(json.dumps({**fields, **extra, "vision_config": {"patch_size": 16}}))
    write_recipe(models, models=[{"model": "one"}])
    assert errors(models) == warnings(models) == []
    edit_json(models / "one" / "config.json", vision_config={"patch_size": 14})
    assert "vision_config.patch_size is 14, the base's is 16" in errors(models)[0]


def test_end_tokens_of_a_fine_tune_that_the_base_does_not_have(models: Path) -> None:
    edit_json(models / "two" / "generation_config.json", eos_token_id=[2, 7])
    (warned,) = warnings(models, quick=True)
    assert warned.startswith("models.two: ")
    assert "its texts end with tokens 2, 7, the backbone's with token 2: requests of this expert follow its" in warned
    edit_json(models / "base" / "generation_config.json", eos_token_id=[2, 7])
    (warned,) = warnings(models, quick=True)
    assert warned.startswith("models.one: ")
    assert "its texts end with token 2, the backbone's with tokens 2, 7: requests of this expert follow its" in warned


def test_an_empty_list_of_end_tokens_names_none(models: Path) -> None:
    edit_json(models / "two" / "generation_config.json", eos_token_id=[])
    assert warnings(models, quick=True) == errors(models, quick=True) == []


@pytest.mark.parametrize("model", ["base", "two"])
@pytest.mark.parametrize("ends", [[[1, 2]], 2.0, 33])
def test_end_tokens_that_are_no_tokens_are_errors(models: Path, model: str, ends: object) -> None:
    edit_json(models / model / "generation_config.json", eos_token_id=ends)
    (wrong,) = errors(models, quick=True)
    assert wrong.startswith("base: " if model == "base" else "models.two: ")
    assert "generation_config.json: eos_token_id" in wrong


def test_other_sampling_defaults_are_reported(models: Path) -> None:
    edit_json(models / "two" / "generation_config.json", temperature=0.6, top_p=0.95)
    (warned,) = warnings(models, quick=True)
    assert "generation_config.json differs: temperature 0.6 (the backbone's: None), top_p 0.95" in warned
    edit_json(models / "two" / "generation_config.json", temperature=0.6, top_p=1.95)
    (wrong,) = errors(models, quick=True)
    assert "two/generation_config.json: top_p is 1.95; it must be above 0 and at most 1" in wrong


def tokenizer(models: Path, name: str = "two") -> dict:
    return json.loads((models / name / "tokenizer.json").read_text())


def write_tokenizer(models: Path, document: dict) -> None:
    (models / "two" / "tokenizer.json").write_text(json.dumps(document))


def test_moved_tokens_are_named(models: Path) -> None:
    document = tokenizer(models)
    vocabulary = document["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    write_tokenizer(models, document)
    (wrong,) = errors(models, quick=True)
    assert "the vocabulary differs from the base's: 'a' is 5, in the base 4; 'b' is 4, in the base 5; 2 in all" in wrong


ADDED = {"content": "<|im_start|>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def test_a_token_in_anothers_place_is_an_error_and_a_new_one_is_not(models: Path) -> None:
    document = tokenizer(models)
    extra = {**ADDED, "special": True}
    document["added_tokens"].append({**extra, "id": 33})
    write_tokenizer(models, document)
    assert errors(models, quick=True) == []
    assert "has 1 token more and 0 fewer" in warnings(models, quick=True)[0]
    document["added_tokens"][-1]["id"] = 7
    write_tokenizer(models, document)
    assert "id 7 is '<|im_start|>', in the base another token; 1 in all" in errors(models, quick=True)[0]


def test_tokens_that_only_the_tokenizers_config_names_count(models: Path) -> None:
    """They get the next free id, as in transformers."""
    for name in ("base", "one"):
        edit_json(models / name / "tokenizer_config.json", added_tokens_decoder={"33": {**ADDED, "special": True}})
    (warned,) = warnings(models, quick=True)
    assert warned.startswith("models.two: ")
    assert "has 0 tokens more and 1 fewer" in warned
    document = tokenizer(models)
    document["added_tokens"].append({**ADDED, "content": "<|im_end|>", "special": True, "id": 33})
    write_tokenizer(models, document)
    assert "id 33 is '<|im_end|>', in the base another token" in errors(models, quick=True)[0]


def test_a_tokenizer_that_cannot_be_read_is_an_error(models: Path) -> None:
    (models / "two" / "tokenizer.json").write_text('{"model": 5}')
    assert "has no readable tokenizer (tokenizer.json)" in errors(models, quick=True)[0]


def test_another_way_to_split_text_is_an_error(models: Path) -> None:
    document = tokenizer(models)
    document["normalizer"] = {"type": "Lowercase"}
    write_tokenizer(models, document)
    assert "normalizer differs from the base's" in errors(models, quick=True)[0]


def test_another_chat_template_is_told(models: Path) -> None:
    (models / "two" / "chat_template.jinja").write_text("{{ messages }}")
    (warned,) = warnings(models, quick=True)
    assert "its chat template differs from the base's: requests of this expert follow its own" in warned


@pytest.mark.parametrize("name", ["vocab.txt", "spiece.model"])
def test_older_vocabularies_are_compared_byte_by_byte(models: Path, name: str) -> None:
    for model, text in (("base", "a"), ("one", "a"), ("two", "b")):
        (models / model / "tokenizer.json").unlink()
        (models / model / name).write_text(text)
    assert [message.partition(":")[0] for message in errors(models, quick=True)] == ["models.two"]
    assert f"{name} differs" in errors(models, quick=True)[0]


def test_code_of_a_checkpoint_is_mentioned_and_left_alone(models: Path) -> None:
    edit_json(models / "base" / "config.json", auto_map={"AutoModel": "modeling.Mine"})
    (models / "base" / "modeling.py").write_text("raise SystemExit\n")
    assert any("auto_map" in message and "never run" in message for message in warnings(models))


def test_tied_heads(models: Path) -> None:
    edit_json(models / "two" / "config.json", tie_word_embeddings=True)
    assert "config.json ties the word embeddings, but lm_head.weight differs" in errors(models, quick=True)[0]

    def tie(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    for model in ("base", "one", "two"):
        edit_json(models / model / "config.json", tie_word_embeddings=True)
        edit_tensors(models / model, tie)
    edit_tensors(models / "one", lambda tensors: tensors.pop("lm_head.weight"))
    assert errors(models) == []


def test_a_resized_vocabulary_and_both_ways_out(models: Path) -> None:
    def grow(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = torch.cat([tensors[name], torch.zeros(2, 32)])

    edit_tensors(models / "two", grow)
    edit_json(models / "two" / "config.json", vocab_size=35)
    found = errors(models, quick=True)
    assert len(found) == 2
    assert all("the vocabulary was resized: either resize the base" in message for message in found)
    write_recipe(models, exclude=["model.embed_tokens.weight", "lm_head.weight"])
    assert errors(models) == []
    assert any("vocab_size is 35, the base's is 33; the backbone gets the base's" in item for item in warnings(models))
    write_recipe(models)
    for name in ("base", "one"):
        edit_tensors(models / name, grow)
        edit_json(models / name / "config.json", vocab_size=35)
    assert errors(models) == []


def test_the_end_token_of_a_tokenizer_that_ends_nothing_else(models: Path) -> None:
    edit_json(models / "two" / "tokenizer_config.json", eos_token="z")
    (warned,) = warnings(models, quick=True)
    assert "its texts end with tokens 2, 29, the backbone's with token 2: requests of this expert follow" in warned


def test_an_architecture_that_is_not_served_is_told(models: Path) -> None:
    edit_json(models / "base" / "config.json", architectures=["GPT2LMHeadModel"])
    (warned,) = warnings(models, quick=True)
    assert warned.startswith("base: ")
    assert "GPT2LMHeadModel, which `overtone serve` does not serve" in warned
