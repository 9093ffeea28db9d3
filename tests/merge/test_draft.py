import json
import shutil
from pathlib import Path

import pytest

from merge.check import check_recipe
from merge.draft import DraftError, draft_recipe
from merge.recipe import Recipe, load_recipe
from tests.merge.lora.adapters import Q, factors, write_adapter
from tests.merge.tiny import save_fine_tune, save_tiny

LORA = {name: 0.05 * tensor for name, tensor in factors(Q, 32, 32).items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a full fine-tune, a LoRA from a Trainer's checkpoint, and a folder of two LoRAs beside a file."""
    folder: Path = tmp_path_factory.mktemp("models")
    save_tiny(folder / "base")
    save_fine_tune(folder / "base", folder / "full", 1, size=0.12, embeddings=False)
    write_adapter(folder / "trained" / "checkpoint-500", LORA)
    write_adapter(folder / "loras" / "support-dates-lora", LORA)
    write_adapter(folder / "loras" / "sql", LORA)
    (folder / "loras" / "notes.txt").write_text("mine")
    return folder


def prompts(path: Path, **counts: int) -> Path:
    rows = [{"task": task, "prompt": f"{task} {number}"} for task, count in counts.items() for number in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def checked(text: str, folder: Path) -> Path:
    """The recipe as a file beside the models, which `overtone check` finds no error in."""
    path = folder / "recipe.yml"
    path.write_text(text)
    report = check_recipe(path)
    assert [str(finding) for finding in report.findings if finding.severity == "error"] == []
    return path


def test_loras_and_full_fine_tunes_are_told_apart(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    draft = draft_recipe(Path("base"), ["full", "trained/checkpoint-500", "loras"])
    assert draft.text.startswith("# 3 LoRAs and 1 full fine-tune of base, ")
    assert f"Paths are relative to this file: save it in {Path.cwd()}.\n" in draft.text
    assert "{name: full, model: full}   # full fine-tune" in draft.text
    assert "{name: trained, model: trained/checkpoint-500}   # LoRA" in draft.text
    recipe = load_recipe(checked(draft.text, folder))
    assert [entry.name for entry in recipe.models] == ["full", "trained", "sql", "support-dates-lora"]
    assert recipe.calibration is None
    assert recipe.merge_method == Recipe.model_fields["merge_method"].default
    assert [line.partition(":")[0] for line in draft.missing] == ["prompts"]
    assert f"# MISSING {draft.missing[0]}" in draft.text
    assert draft.errors == 0


def test_prompts_that_fit_are_used(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    file = prompts(folder / "prompts.jsonl", full=3, sql=3)
    draft = draft_recipe(Path("base"), ["full", "loras/sql"], Path(file.name))
    assert draft.missing == ()
    calibration = load_recipe(checked(draft.text, folder)).calibration
    assert calibration is not None
    assert calibration.file == file


def test_a_directory_is_called_as_the_prompts_call_its_task(folder: Path):
    file = prompts(folder / "named.jsonl", dates=3, sql=3)
    draft = draft_recipe(folder / "base", [str(folder / "loras")], file)
    assert draft.missing == ()
    recipe = load_recipe(checked(draft.text, folder))
    assert [entry.name for entry in recipe.models] == ["sql", "dates"]
    assert recipe.merge_method == "base"


def test_prompts_that_do_not_fit_are_named_and_left_out(folder: Path):
    file = prompts(folder / "unfit.jsonl", full=3, sql=1, poetry=2)
    draft = draft_recipe(folder / "base", [str(folder / "full"), str(folder / "loras" / "sql")], file)
    assert draft.missing == (
        f"prompts of sql: {file} has 1 prompt of it and must have at least 2, a few dozen are recommended",
        f"a fine-tune called poetry: {file} has 2 prompts of it; remove them, or name its fine-tune poetry=DIRECTORY",
    )
    assert load_recipe(checked(draft.text, folder)).calibration is None


def test_a_recipe_of_absolute_paths_may_be_saved_anywhere(folder: Path):
    assert "relative" not in draft_recipe(folder / "base", [str(folder / "full")]).text


def test_names_can_be_given(folder: Path):
    draft = draft_recipe(folder / "base", [f"merged={folder / 'full'}", f"two={folder / 'full'}"])
    recipe = load_recipe(checked(draft.text, folder))
    assert [entry.name for entry in recipe.models] == ["merged", "two"]
    assert recipe.name not in {"merged", "two"}


@pytest.mark.parametrize(
    ("directory", "name"),
    [
        ("my model (v2)", "my-model-v2-"),
        ("auto", "model-auto"),
        ("models--me--geo-sql/snapshots/0123abc", "geo-sql"),
        ("{odd: 'name'}", "odd-name-"),
    ],
)
def test_directories_give_usable_names(directory: str, name: str, folder: Path, tmp_path: Path):
    shutil.copytree(folder / "loras" / "sql", tmp_path / directory)
    draft = draft_recipe(folder / "base", [str(tmp_path / directory)])
    (entry,) = load_recipe(checked(draft.text, folder)).models
    assert (entry.name, entry.model) == (name, tmp_path / directory)


def test_what_check_would_refuse_stands_in_the_draft(folder: Path, tmp_path: Path):
    shutil.copytree(folder / "loras" / "sql", tmp_path / "sql")
    config = json.loads((tmp_path / "sql" / "adapter_config.json").read_text())
    (tmp_path / "sql" / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "IA3"}))
    draft = draft_recipe(folder / "base", [str(tmp_path / "sql")])
    assert draft.errors == 1
    assert "# ERROR models.sql: " in draft.text
    assert "IA3" in draft.text


@pytest.mark.parametrize(
    ("base", "places", "message"),
    [
        ("absent", ["full"], "absent is not a model: it must be a directory with config.json and safetensors"),
        ("loras/sql", ["full"], "loras/sql is a LoRA adapter; name the model that it was trained on first"),
        ("base", ["absent"], "absent is not a directory"),
        ("base", ["x=absent"], "absent is neither a model nor a LoRA adapter"),
        ("base", ["loras/sql", "SQL=full"], "two fine-tunes are called 'sql': write NAME=DIRECTORY"),
        ("base", ["empty"], "empty is neither a model .* and has none in it"),
    ],
)
def test_what_is_no_model_is_one_line(
    base: str, places: list[str], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(folder)
    Path("empty").mkdir(exist_ok=True)
    with pytest.raises(DraftError, match=message) as raised:
        draft_recipe(Path(base), places)
    assert "\n" not in str(raised.value)


def test_malformed_prompts_are_one_line(folder: Path, tmp_path: Path):
    (tmp_path / "bad.jsonl").write_text('{"task": 1}\n')
    with pytest.raises(DraftError, match=r"bad\.jsonl line 1 must be an object"):
        draft_recipe(folder / "base", [str(folder / "full")], tmp_path / "bad.jsonl")
