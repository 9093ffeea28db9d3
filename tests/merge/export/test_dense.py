import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM

from merge.bundle import BundleError
from merge.export import export_dense
from tests.merge.export.bundles import EMBEDDING, UP, WEIGHTS, write

TOKENS = torch.tensor([[1, 5, 9, 13, 6]])


@pytest.mark.parametrize("storage", ["bf16", "int8"])
def test_transformers_loads_the_backbone_with_the_expert_in_it(tmp_path: Path, storage: str) -> None:
    made = write(tmp_path / "bundle", weights=(*WEIGHTS, EMBEDDING), storage=storage)
    report = export_dense(made.bundle, "one", tmp_path / "out")
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, dict(made.model.named_parameters())[name]), name
    with torch.inference_mode():
        torch.testing.assert_close(loaded(TOKENS).logits, made.model(TOKENS).logits, rtol=0, atol=0)
    assert (report.dtype, report.rounding) == ("float32", 0.0)
    assert report.bytes == sum(parameter.nbytes for parameter in loaded.parameters())
    AutoTokenizer.from_pretrained(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "out"]


def test_in_bfloat16_the_sum_is_rounded_once_and_the_cost_is_told(tmp_path: Path) -> None:
    made = write(tmp_path / "bundle", torch.bfloat16)
    report = export_dense(made.bundle, "one", tmp_path / "out")
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    exact = dict(made.model.named_parameters())
    lost = 0.0
    for name, parameter in loaded.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, exact[name].to(torch.bfloat16)), name
        lost += float((parameter.detach().float() - exact[name]).square().sum())
    expert = made.bundle.read_expert("one")
    size = sum(float(delta.numbers.square().sum()) for delta in expert.sparse.values())
    size += sum(float(delta.square().sum()) for delta in expert.dense.values())
    assert report.rounding == pytest.approx((lost / size) ** 0.5, rel=1e-3)
    assert 0 < report.rounding < 0.05


def test_float32_keeps_a_bfloat16_bundles_sum_exact(tmp_path: Path) -> None:
    made = write(tmp_path / "bundle", torch.bfloat16)
    report = export_dense(made.bundle, "one", tmp_path / "out", torch.float32)
    assert report.rounding == 0.0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    with torch.inference_mode():
        torch.testing.assert_close(loaded(TOKENS).logits, made.model(TOKENS).logits, rtol=0, atol=0)


def test_a_directory_in_use_is_left_alone(tmp_path: Path) -> None:
    made = write(tmp_path / "bundle")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    (tmp_path / "file").write_text("y")
    for name, message in (("out", "not empty"), ("file", "a file")):
        with pytest.raises(BundleError, match=message):
            export_dense(made.bundle, "one", tmp_path / name)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    (tmp_path / "out" / "mine").unlink()
    export_dense(made.bundle, "one", tmp_path / "out")
    LlamaForCausalLM.from_pretrained(tmp_path / "out")


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    made = write(tmp_path / "bundle")
    weights = made.bundle.backbone_dir / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-4] + b"\x00\x00\x80\x7f")  # infinity
    with pytest.raises(ValueError, match="infinite"):
        export_dense(made.bundle, "one", tmp_path / "out")
    weights.write_bytes(data)
    with pytest.raises(BundleError, match="no expert 'two'"):
        export_dense(made.bundle, "two", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_residual_without_its_tensor_is_named(tmp_path: Path) -> None:
    made = write(tmp_path / "bundle")
    file = made.bundle.backbone_dir / "model.safetensors"
    tensors = load_file(file)
    tensors[UP] = tensors[UP][:, :8].contiguous()
    save_file(tensors, file)
    with pytest.raises(BundleError, match=f"residual of {UP} does not fit"):
        export_dense(made.bundle, "one", tmp_path / "out")
