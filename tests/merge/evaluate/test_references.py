import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, LlamaForCausalLM

from merge.bundle import Bundle, open_bundle
from merge.evaluate import References
from merge.evaluate.divergence import summarised
from merge.experts import Example

PROMPTS = ("turn ab around", "spell cd")
LIMIT = 6


def greedy(directory: Path, text: str) -> list[int]:
    """What transformers generates, with the model's own tokenizer."""
    model = LlamaForCausalLM.from_pretrained(directory)
    ids = AutoTokenizer.from_pretrained(directory)(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    found = model.generate(input_ids=ids, do_sample=False, max_new_tokens=LIMIT)
    return [int(token) for token in found[0, ids.shape[1] :]]


@pytest.mark.parametrize("chat", [True, False])
def test_references_reply_as_transformers_does(bundle: Bundle, chat: bool) -> None:
    references = References(bundle, chat)
    assert references.missing == ()
    assert list(references.fine_tunes) == ["one", "two"]
    examples = [Example(prompt) for prompt in PROMPTS]
    texts = [f"{prompt}:" if chat else f"<bos>{prompt}" for prompt in PROMPTS]
    done = []
    for task in ("one", "two"):
        written = references.fine_tune_replies(task, examples, LIMIT, lambda: done.append(1))
        assert [list(item.tokens) for item in written] == [greedy(bundle.path.parent / task, text) for text in texts]
    base = references.base_replies(examples, LIMIT, lambda: done.append(1))
    assert [list(item.tokens) for item in base] == [greedy(bundle.path.parent / "base", text) for text in texts]
    assert len(done) == 6


def test_divergences_are_those_of_dense_weights(bundle: Bundle) -> None:
    references = References(bundle, chat=False)
    written = references.fine_tune_replies("one", [Example(prompt) for prompt in PROMPTS], LIMIT, lambda: None)
    reference = references.reference(written, lambda: None)
    models = {name: LlamaForCausalLM.from_pretrained(bundle.path.parent / name) for name in ("one", "base")}
    models["backbone"] = LlamaForCausalLM.from_pretrained(bundle.backbone_dir)
    models["two"] = LlamaForCausalLM.from_pretrained(bundle.backbone_dir).requires_grad_(False)
    expert, parameters = bundle.read_expert("two"), dict(models["two"].named_parameters())
    for name, delta in expert.dense.items():
        parameters[name] += delta
    for name, sparse in expert.sparse.items():
        parameters[name] += sparse.dense(parameters[name].shape[1])
    for name, factors in expert.low_rank.items():
        parameters[name] += factors.dense()
    for model in ("base", "backbone", "two"):
        found = list(references.divergences(model, reference))
        for item, divergence in zip(written, found, strict=True):
            ids, start = torch.tensor([[*item.prompt, *item.tokens]]), len(item.prompt) - 1
            with torch.no_grad():
                log_p, log_q = (models[name](ids).logits[0, start:-1].log_softmax(-1) for name in ("one", model))
            expected = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
            torch.testing.assert_close(divergence, expected, rtol=1e-3, atol=1e-5)
    summary = summarised(found)
    assert summary.tokens == sum(len(item.tokens) for item in written)
    assert 0 < summary.mean < summary.p99


def test_a_fine_tune_that_went_is_named(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    manifest["inputs"]["models/two"]["path"] = str(tmp_path / "gone")
    (tmp_path / "bundle" / "bundle.json").write_text(json.dumps(manifest))
    references = References(open_bundle(tmp_path / "bundle"), chat=False)
    assert list(references.fine_tunes) == ["one"]
    (told,) = references.missing
    assert told.startswith("The model two ")
