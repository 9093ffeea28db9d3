"""Models of the served families merge, and what is cut of them is what the decoder has."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from merge.bundle import open_bundle
from merge.check import CheckError
from merge.experts.packing import packed_batches
from merge.run import merge_recipe
from serve.model import ResidualBanks, ResidualShape, load_model
from tests.merge.tiny import tiny_tokenizer
from tests.serve.conftest import random_model
from tests.serve.model.families import CASES

CALIBRATION = {"file": "prompts.jsonl", "per_task": 2, "answer_tokens": 3}


def write_inputs(folder: Path, case: str) -> None:
    """A base, two fine-tunes of it, and prompts."""
    family, settings = CASES[case]
    random_model(family, **settings).save_pretrained(folder / "base")
    for seed, name in enumerate(("one", "two")):
        model, generator = AutoModelForCausalLM.from_pretrained(folder / "base"), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(folder / name)
    for name in ("base", "one", "two"):
        tiny_tokenizer().save_pretrained(folder / name)
    prompts = [{"task": task, "prompt": f"{task} {word}."} for task in ("one", "two") for word in ("alpha", "beta")]
    (folder / "prompts.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in prompts))


def merged(folder: Path, **changes: Any) -> Path:
    document = {
        "name": "tiny",
        "base_model": "base",
        "merge_method": "task_arithmetic",
        "models": [{"model": "one"}, {"model": "two"}],
        **changes,
    }
    (folder / "recipe.yml").write_text(json.dumps(document))
    merge_recipe(folder / "recipe.yml", folder / "out")
    return folder / "out"


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        ("phi3, window", {"experts": {"density": 0.3, "distill": 0}, "calibration": CALIBRATION}),
        ("gemma3", {"experts": {"budget": "60%", "distill": 0}, "calibration": CALIBRATION}),
        *((case, {"experts": {"density": 0.3}}) for case in CASES if case not in {"phi3, window", "gemma3"}),
    ],
)
def test_experts_fit_the_decoder(case: str, changes: dict[str, Any], tmp_path: Path) -> None:
    write_inputs(tmp_path, case)
    bundle = open_bundle(merged(tmp_path, **changes))
    decoder = load_model(bundle.backbone_dir)
    banks = ResidualBanks(decoder, ResidualShape.of([bundle.expert_path("one")]), 1)
    expert = bundle.read_expert("one")
    banks.load(0, banks.pack(expert))
    weights = {name for name, placement in decoder.placements.items() if len(placement.shape) == 2}
    cut = expert.sparse.keys() | expert.low_rank.keys()
    assert weights - cut <= {"model.embed_tokens.weight", "lm_head.weight"}


def test_a_routed_feed_forward_is_not_calibrated(tmp_path: Path) -> None:
    """Transformers stacks its tensors, so that no module has a weight of the checkpoint's name."""
    write_inputs(tmp_path, "mixtral")
    with pytest.raises(CheckError, match=r"experts\.0\.w1\.weight is not a parameter of the model"):
        merged(tmp_path, experts={"density": 0.3}, calibration=CALIBRATION)


@pytest.mark.parametrize("case", CASES)
def test_packed_sequences_have_the_logits_they_have_alone(case: str) -> None:
    """Of every family that is packed; a window is longer than any sequence, as packing demands."""
    family, settings = CASES[case]
    window = {"sliding_window": 64} if settings.get("sliding_window") else {}
    model = random_model(family, **{**settings, **window})
    prompts = [[*range(2, 14), 20 + number] for number in range(3)]
    replies = [[30 + number, 40] for number in range(3)]
    for batch in packed_batches(model, prompts, replies, 8):
        assert (batch.mask is None) == (family == "gemma2"), "whose attention adds its mask to the scores"
        with torch.inference_mode():
            found = model(**batch.arguments).logits
            for row, column in batch.predicts.nonzero().tolist():
                if batch.mask is None:
                    continue
                seen = batch.ids[row][batch.mask[row, 0, column]]
                want = model(seen[None]).logits[0, -1]
                torch.testing.assert_close(found[row, column], want, rtol=1e-4, atol=1e-4)
