"""GGUF files as the models of a recipe and of the command line."""

from pathlib import Path

import pytest
import torch
import typer
from transformers import AutoModelForCausalLM

from merge.check import check_recipe
from merge.checkpoint import open_checkpoint
from merge.draft import DraftError, draft_recipe
from merge.recipe import load_recipe
from merge.run import merge_recipe
from serve.cli.server_options import server_settings
from tests.merge.gguf.files import write_gguf
from tests.merge.tiny import save_fine_tune, save_tiny, tiny_tokenizer


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base.gguf, tune.gguf, their tokenizer, and under `plain/` the same as directories."""
    folder: Path = tmp_path_factory.mktemp("files")
    save_tiny(folder / "plain" / "base", tied=False)
    save_fine_tune(folder / "plain" / "base", folder / "plain" / "tune", 1, embeddings=False)
    for name in ("base", "tune"):
        write_gguf(folder / f"{name}.gguf", AutoModelForCausalLM.from_pretrained(folder / "plain" / name))
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_a_recipe_of_gguf_files_gives_the_bundle_of_their_models(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OVERTONE_CACHE_DIR", str(tmp_path / "cache"))
    text = "merge_method: linear\nexperts: {budget: 0.3}\n"
    (files / "recipe.yml").write_text(f"{text}base_model: base.gguf\nmodels: [{{model: tune.gguf}}]\n")
    (files / "plain.yml").write_text(f"{text}base_model: plain/base\nmodels: [{{model: plain/tune}}]\n")
    assert check_recipe(files / "recipe.yml", tmp_path / "bundle").errors == 0
    merge_recipe(files / "recipe.yml", tmp_path / "bundle", progress=False)
    merge_recipe(files / "plain.yml", tmp_path / "plain", progress=False)
    found, plain = (open_checkpoint(tmp_path / name / "backbone") for name in ("bundle", "plain"))
    assert set(found.tensors) == set(plain.tensors)
    for name in plain.tensors:
        torch.testing.assert_close(found.tensor(name), plain.tensor(name), rtol=0, atol=1e-7)
    assert (tmp_path / "bundle" / "experts" / "tune.safetensors").is_file()


def test_a_recipe_is_drafted_for_gguf_files(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERTONE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(files)
    draft = draft_recipe(Path("base.gguf"), ["tune.gguf", "again=tune.gguf"])
    assert draft.errors == 0, draft.findings
    assert "{name: tune, model: tune.gguf}   # full fine-tune" in draft.text
    (files / "drafted.yml").write_text(draft.text)
    recipe = load_recipe(files / "drafted.yml")
    assert [entry.name for entry in recipe.models] == ["tune", "again"]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "tune.gguf").symlink_to(files / "tune.gguf")
    in_folder = draft_recipe(files / "base.gguf", [str(tmp_path / "folder")])
    assert "name: tune, model: " in in_folder.text
    with pytest.raises(DraftError, match=r"absent\.gguf is not a model"):
        draft_recipe(Path("absent.gguf"), ["tune.gguf"])


def test_the_server_takes_a_gguf_file(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERTONE_CACHE_DIR", str(tmp_path / "cache"))
    settings = server_settings({"bundle": files / "base.gguf"})
    assert settings.bundle.name == "base"
    assert (settings.bundle / "config.json").is_file()
    with pytest.raises((ValueError, typer.BadParameter), match="no GGUF file at"):
        server_settings({"bundle": files / "nowhere.gguf"})
