import json
from pathlib import Path

import pytest

from merge.bundle import open_bundle
from merge.inspect import inspect_bundle
from merge.inspect.origin import origin
from merge.run import merge_recipe
from tests.merge.tiny import save_fine_tune, save_tiny


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"form": "lora"}, "the fine-tune's LoRA, unchanged"),
        (
            {"form": "auto", "budget": "1.000%", "selection": "whole", "distill": "0", "storage": "int8"},
            "the fine-tune's LoRA, rounded to int8",
        ),
        (
            {"form": "auto", "budget": "1.000%", "selection": "whole", "distill": "0"},
            "the fine-tune's LoRA, rounded to bf16",
        ),
        (
            {"form": "auto", "budget": "0.500%", "selection": "distilled", "distill": "30", "storage": "int8"},
            "the fine-tune's LoRA, distilled for 30 steps",
        ),
        (
            {"form": "both", "budget": "0.500%", "selection": "activation", "distill": "1", "storage": "int8"},
            "fitted to prompts, distilled for 1 step, budget 0.5 %",
        ),
        (
            {"form": "low_rank", "budget": "2.000%", "selection": "residual", "distill": "None"},
            "fitted to the weights, budget 2 %",
        ),
        (
            {"selection": "magnitude", "values": "rescaled", "distill": "0", "factor": "1.5"},
            "largest changes of the fine-tune, times 1.5",
        ),
        ({"selection": "residual", "values": "exact", "distill": "0"}, "largest differences from the fine-tune"),
        (
            {"selection": "activation", "values": "least_squares", "distill": "60", "storage": "int8"},
            "entries fitted to prompts, distilled for 60 steps",
        ),
        ({}, "not recorded"),
        ({"tool": "another", "distill": "many"}, "distill: many, tool: another"),
        ({"selection": "residual", "budget": "much", "form": "auto"}, "fitted to the weights, budget much"),
    ],
)
def test_what_an_expert_says_of_itself_in_words(metadata: dict[str, str], words: str) -> None:
    assert origin(metadata) == words


@pytest.mark.parametrize("storage", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("form", ["auto", "low_rank", "both", "sparse"])
def test_every_form_and_storage_is_in_words(form: str, storage: str, tmp_path: Path) -> None:
    """Whatever `overtone merge` writes is recognised: no key of the metadata is printed as it is."""
    base = save_tiny(tmp_path / "base")
    save_fine_tune(base, tmp_path / "one", 0, size=0.3)
    experts = {"form": form, "storage": "bf16" if storage == "bf16" else "int8"}
    recipe = {
        "name": "tiny",
        "base_model": "base",
        "merge_method": "linear",
        "models": [{"model": "one"}],
        "backbone": {"storage": storage},
        "experts": experts | ({"density": 0.1} if form == "sparse" else {"budget": 0.1}),
    }
    (tmp_path / "recipe.yml").write_text(json.dumps(recipe))
    report = merge_recipe(tmp_path / "recipe.yml", tmp_path / "bundle", progress=False)
    found = inspect_bundle(open_bundle(tmp_path / "bundle"))
    lines = found.as_text().splitlines()
    assert [item.share for item in found.experts] == pytest.approx([item.share for item in report.experts], abs=1e-6)
    assert report.stored_bytes == found.backbone["bytes"]
    assert (report.stored_bytes < report.backbone_bytes) == (storage != "bf16")
    assert f"weights in {storage}, " in lines[1]
    assert (lines[2] == "") == (storage == "bf16"), "a quantised backbone has a line about what shares refer to"
    assert lines[4 + (storage != "bf16")].endswith(
        "largest differences from the fine-tune" if form == "sparse" else "fitted to the weights, budget 10 %"
    )
