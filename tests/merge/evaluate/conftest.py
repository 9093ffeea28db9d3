import json
from pathlib import Path

import pytest

from merge.bundle import Bundle, open_bundle
from merge.run import merge_recipe
from tests.merge.tiny import save_fine_tune, save_tiny

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}{% if add_generation_prompt %}:{% endif %}"


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of two fine-tunes, `one` and `two`, of a base with a chat template; all are still at their paths."""
    root: Path = tmp_path_factory.mktemp("evaluated")
    base = save_tiny(root / "base")
    (base / "chat_template.jinja").write_text(TEMPLATE)
    for seed, name in enumerate(("one", "two"), 1):
        save_fine_tune(base, root / name, seed, size=0.3)
    recipe = {
        "name": "tiny",
        "base_model": "base",
        "merge_method": "linear",
        "models": [{"model": name} for name in ("one", "two")],
        "experts": {"form": "both", "budget": 0.5},
    }
    (root / "recipe.yml").write_text(json.dumps(recipe))
    merge_recipe(root / "recipe.yml", root / "bundle", progress=False)
    return open_bundle(root / "bundle")
