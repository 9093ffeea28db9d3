"""The comparison with vLLM, with a worker that reads the exported files in its place."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.interchange import compare as comparing
from benchmarks.interchange.bundle import RANK, export_adapters, write_bundle
from benchmarks.interchange.compare import Asked, ask, compare, differences
from merge.bundle import Bundle
from serve.demo.zoo.tasks import TASKS


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("interchange") / "bundle")


def test_experts_are_low_rank_and_export_without_loss(bundle: Bundle, tmp_path: Path) -> None:
    assert bundle.expert_names == tuple(sorted(task.name for task in TASKS))
    errors = export_adapters(bundle, tmp_path)
    assert set(errors.values()) == {0.0}
    kinds = set()
    for name in bundle.expert_names:
        expert = bundle.read_expert(name)
        assert not expert.sparse
        tensors = load_file(tmp_path / name / "adapter_model.safetensors")
        for weight, delta in expert.low_rank.items():
            kinds.add(delta.quantised)
            module = f"base_model.model.{weight.removesuffix('.weight')}"
            product = tensors[f"{module}.lora_B.weight"].float() @ tensors[f"{module}.lora_A.weight"].float()
            torch.testing.assert_close(product, delta.dense(), rtol=1e-5, atol=1e-6)
            assert delta.rank <= RANK
    assert kinds == {True, False}


def test_prompts_go_round_the_experts_and_the_backbone(bundle: Bundle) -> None:
    asked = ask(bundle, 18)
    assert [one.expert is None for one in asked].count(True) == 2
    assert len({one.expert for one in asked}) == 9
    assert all(one.prompt for one in asked)


def test_where_tokens_part_is_told() -> None:
    asked = [Asked((1,), "a"), Asked((2,), None), Asked((3,), "b")]
    report = differences(asked, [[1, 2], [3, 4], [5]], [[1, 2], [3, 5], [5, 6]])
    assert (report["prompts"], report["equal"], report["experts"]) == (3, 1, 2)
    assert report["parted"] == [{"prompt": 1, "expert": None, "at": 1}, {"prompt": 2, "expert": "b", "at": 1}]


WORKER = """
import json, sys
assert sys.argv[1:][2:4] == ["eager", "float32"]
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    print(json.dumps({"tokens": [[0] * asked["tokens"] for _ in asked["prompts"]]}), flush=True)
"""


def test_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vllm_worker.py").write_text(WORKER)
    monkeypatch.setattr(comparing, "FOLDER", tmp_path)
    report = compare(tmp_path / "out", Path(sys.executable), 9, lambda _: None)
    assert (report["prompts"], report["equal"], report["export_error"]) == (9, 0, 0.0)
    assert report["distinct_replies"] > 1
