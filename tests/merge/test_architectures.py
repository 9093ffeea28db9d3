"""Models of other kinds: what is shared is merged, what belongs to one task or to none is the base's."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    CLIPConfig,
    CLIPModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from merge.check import CheckError
from merge.run import merge_recipe

SMALL = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "initializer_range": 0.2,
}  # fmt: skip


def bert(labels: int = 2) -> PreTrainedModel:
    return BertForSequenceClassification(
        BertConfig(vocab_size=31, max_position_embeddings=20, num_labels=labels, **SMALL)
    )


def vit(labels: int = 2) -> PreTrainedModel:
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=labels, **SMALL))


def clip(_labels: int = 2) -> PreTrainedModel:
    text = {**SMALL, "vocab_size": 31, "max_position_embeddings": 10, "eos_token_id": 2, "bos_token_id": 1}
    return CLIPModel(
        CLIPConfig(text_config=text, vision_config={**SMALL, "image_size": 8, "patch_size": 4}, projection_dim=8)
    )


def t5(_labels: int = 2) -> PreTrainedModel:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=31, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0)
    )


KINDS: list[Callable[..., PreTrainedModel]] = [bert, vit, clip, t5]


def save(model: PreTrainedModel, path: Path, seed: int | None = None, **buffers: torch.Tensor) -> None:
    """Save a model; with a seed, as a fine-tune: every parameter moved a little."""
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(path)
    if buffers:
        file = path / "model.safetensors"
        save_file({**load_file(file), **buffers}, file, metadata={"format": "pt"})


def recipe(folder: Path, **lines: str) -> Path:
    path = folder / "recipe.yml"
    text = {"base_model": "base", "models": "[{model: a}, {model: b}]", "merge_method": "task_arithmetic", **lines}
    path.write_text("".join(f"{key}: {value}\n" for key, value in text.items()))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_the_shared_part_is_merged_and_the_model_loads(tmp_path: Path, kind: Callable[..., PreTrainedModel]) -> None:
    torch.manual_seed(0)
    model = kind()
    save(model, tmp_path / "base")
    for seed, name in enumerate("ab"):
        save(type(model).from_pretrained(tmp_path / "base"), tmp_path / name, seed)
    merge_recipe(recipe(tmp_path, parameters="{weight: 0.5}"), tmp_path / "out", progress=False)
    base, a, b, merged = (
        load_file(tmp_path / name / "model.safetensors") for name in ("base", "a", "b", "out/backbone")
    )
    heads = [name for name in base if name.startswith("classifier")]
    assert len(heads) == (2 if kind in {bert, vit} else 0)
    assert set(merged) == set(base)
    for name, origin in base.items():
        expected = origin if name in heads else origin + (a[name] - origin) / 2 + (b[name] - origin) / 2
        torch.testing.assert_close(merged[name], expected, rtol=0, atol=1e-6)
    # Saved once more, because transformers calls some tensors otherwise in memory than on disk.
    type(model).from_pretrained(tmp_path / "out" / "backbone").save_pretrained(tmp_path / "loaded")
    loaded = load_file(tmp_path / "loaded" / "model.safetensors")
    assert set(loaded) == set(merged)
    assert all(torch.equal(loaded[name], merged[name]) for name in merged)


def test_heads_of_other_shapes_and_integer_buffers_stay_the_bases(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ids = {"bert.embeddings.position_ids": torch.arange(20)[None]}
    save(bert(), tmp_path / "base", **ids)
    trunk = AutoModel.from_pretrained(tmp_path / "base").state_dict()
    for labels, name in ((3, "a"), (5, "b")):
        model = bert(labels)
        model.bert.load_state_dict(trunk, strict=False)
        save(model, tmp_path / name, labels, **({} if name == "a" else ids))
    merge_recipe(recipe(tmp_path, out_dtype="bfloat16"), tmp_path / "out", progress=False)
    base, merged = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "out/backbone"))
    for name in ("classifier.weight", "classifier.bias", "bert.embeddings.position_ids"):
        assert torch.equal(merged[name], base[name])
    moved = "bert.encoder.layer.0.attention.self.query.weight"
    assert merged[moved].dtype == torch.bfloat16
    assert not torch.equal(merged[moved], base[moved].bfloat16())
    experts = load_file(tmp_path / "out" / "experts" / "a.safetensors")
    assert not any(name.startswith("classifier") for name in experts)
    with pytest.raises(CheckError, match=r"classifier\.weight is \[3, 16\], the base's is \[2, 16\]; if it belongs to"):
        merge_recipe(recipe(tmp_path, exclude="[]"), tmp_path / "other", progress=False)


def test_a_base_with_another_head(tmp_path: Path) -> None:
    torch.manual_seed(0)
    masked = BertForMaskedLM(BertConfig(vocab_size=31, max_position_embeddings=20, **SMALL))
    save(masked, tmp_path / "base")
    for seed, name in enumerate("ab"):
        model = bert()
        model.bert.load_state_dict(masked.bert.state_dict(), strict=False)
        save(model, tmp_path / name, seed)
    pooler = recipe(tmp_path)
    with pytest.raises(CheckError, match=r"bert\.pooler\.dense\.weight is not in the base"):
        merge_recipe(pooler, tmp_path / "out", progress=False)
    chosen = recipe(tmp_path, exclude='["cls.*", "classifier.*", "*.pooler.*"]')
    merge_recipe(chosen, tmp_path / "out", progress=False)
    BertForMaskedLM.from_pretrained(tmp_path / "out" / "backbone")


def test_only_what_is_included_is_merged(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save(t5(), tmp_path / "base")
    for seed, name in enumerate("ab"):
        save(T5ForConditionalGeneration.from_pretrained(tmp_path / "base"), tmp_path / name, seed)
    merge_recipe(
        recipe(tmp_path, include='["encoder.*"]', exclude="['*layer_norm*']"), tmp_path / "out", progress=False
    )
    base, merged = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "out/backbone"))
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed == {name for name in base if name.startswith("encoder.") and "layer_norm" not in name}
