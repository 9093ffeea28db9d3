import json
from pathlib import Path

import pytest

from merge.card import model_card
from merge.recipe import load_recipe


@pytest.mark.parametrize("router", [True, False])
def test_what_a_card_says(router: bool, tmp_path: Path) -> None:
    recipe = {"name": "shop", "base_model": "models/base", "merge_method": "base", "models": [{"model": "models/sql"}]}
    if router:
        recipe["calibration"] = {"file": "prompts.jsonl"}
    (tmp_path / "recipe.yml").write_text(json.dumps(recipe))
    rows = [{"expert": "sql", "bytes": "20"}, {"expert": "dates", "bytes": "30", "KL": "0.1"}]
    text = model_card(load_recipe(tmp_path / "recipe.yml"), rows, ["A note."])
    assert "# shop\n\n1 fine-tune of `base`, served as one model: a backbone merged by `base`" in text
    assert "| expert | bytes | KL |\n| --- | --- | --- |\n| sql | 20 |  |\n| dates | 30 | 0.1 |" in text
    assert "- A note.\n" in text
    assert "`overtone serve PATH`, the path of this directory" in text
    assert ("`auto`: then the router chooses" in text) == router
