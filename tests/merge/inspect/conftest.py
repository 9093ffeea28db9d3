import json
import random
from pathlib import Path

import pytest

from merge.bundle import Bundle, open_bundle
from merge.run import merge_recipe
from tests.merge.tiny import save_fine_tune, save_tiny

WORDINGS = {
    "one": ["turn {} around.", "spell {} backwards.", "write {} in reverse.", "mirror the word {}.", "flip {} please."],
    "two": ["count {} for me.", "how long is {}.", "number of letters in {}.", "measure {} now.", "length of {}."],
}


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A merged bundle whose inputs are still at their paths; the second expert has 8-bit values like the first."""
    root: Path = tmp_path_factory.mktemp("inspected")
    base = save_tiny(root / "base")
    for seed, name in enumerate(WORDINGS):
        save_fine_tune(base, root / name, seed, size=0.3)
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(8)]
    lines = [{"task": t, "prompt": w.format(word)} for t, ws in WORDINGS.items() for w in ws for word in words]
    (root / "prompts.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    recipe = {
        "name": "tiny",
        "base_model": "base",
        "merge_method": "fr",
        "parameters": {"filter": "normalized", "d0": 0.3},
        "models": [{"model": name} for name in WORDINGS],
        "experts": {"density": 0.1, "distill": 0, "storage": "int8", "selection": "magnitude"},
        "calibration": {"file": "prompts.jsonl", "per_task": 4, "answer_tokens": 3},
    }
    (root / "recipe.yml").write_text(json.dumps(recipe))
    merge_recipe(root / "recipe.yml", root / "bundle", progress=False)
    return open_bundle(root / "bundle")
