import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from kernels.expert_linear import ExpertBatch
from serve.cli import main
from serve.model import load_model
from tests.merge.export.bundles import UP, Exported, factors, write
from tests.serve.model.test_decoder import fill_slots, run

PROMPT = [1, 5, 9, 13, 6, 8]


def export(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["export", *map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def served(made: Exported, folder: Path) -> torch.Tensor:
    """Logits of the prompt with the expert in a slot, [T, vocabulary]."""
    decoder = load_model(made.bundle.backbone_dir)
    fill_slots(decoder, [made.bundle.read_expert("one")], folder)
    return run(decoder, [PROMPT], experts=ExpertBatch.from_slots([0] * len(PROMPT)))


def exported(directory: Path) -> torch.Tensor:
    with torch.inference_mode():
        return LlamaForCausalLM.from_pretrained(directory)(torch.tensor([PROMPT])).logits[0]


@pytest.mark.parametrize("storage", ["bf16", "int8"])
def test_a_dense_checkpoint_answers_as_the_served_bundle_does(
    tmp_path: Path, storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = write(tmp_path / "bundle", storage=storage)
    assert export(made.bundle.path, tmp_path / "out", "--task", "one") == 0
    assert "as a dense checkpoint" in capsys.readouterr().out
    torch.testing.assert_close(exported(tmp_path / "out"), served(made, tmp_path), atol=1e-4, rtol=1e-4)


def test_in_bfloat16_it_is_close_and_says_why_not_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = write(tmp_path / "bundle", torch.bfloat16)
    assert export(made.bundle.path, tmp_path / "out", "--task", "one") == 0
    assert "rounding the sum to bfloat16 costs" in capsys.readouterr().out
    want, got = served(made, tmp_path).float(), exported(tmp_path / "out").float()
    assert float((got - want).abs().max()) < 0.05 * float(want.abs().max())


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = write(tmp_path / "bundle")
    assert export(made.bundle.path, "--task", "one", "--format", "hf", tmp_path / "out", "--json") == 0
    assert json.loads(capsys.readouterr().out)["task"] == "one"


def test_an_adapter_tells_its_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = write(tmp_path / "bundle")
    assert export(made.bundle.path, tmp_path / "out", "--task", "one", "--format", "peft", "--rank", 4) == 0
    out = capsys.readouterr().out
    assert "as a LoRA of rank 4" in out
    assert "relative Frobenius error" in out
    assert "try a higher --rank" in out
    assert "not in it, with the change" in out
    assert "model.norm.weight" in out
    assert (tmp_path / "out" / "adapter_config.json").is_file()


def test_an_adapter_of_enough_rank_comes_without_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = write(tmp_path / "bundle")
    assert export(made.bundle.path, tmp_path / "out", "--task", "one", "--format", "peft", "--rank", 32) == 0
    assert "try a higher --rank" not in capsys.readouterr().out


def test_an_adapter_of_a_low_rank_expert_needs_no_rank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = write(tmp_path / "bundle", weights=(), low_rank={UP: factors(48, 32, 3)})
    assert export(made.bundle.path, tmp_path / "out", "--task", "one", "--format", "peft") == 0
    out = capsys.readouterr().out
    assert "as a LoRA of rank 3" in out
    assert "all low-rank parts of the expert are in it without loss" in out
    assert "not in it, with the change" in out
    assert "error" not in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--format", "peft"), 2, "an adapter needs a rank"),
        (("--format", "peft", "--rank", "4", "--dtype", "float16"), 2, "is only valid with --format hf"),
        (("--rank", "4"), 2, "is only valid with --format peft"),
        (("--norms",), 2, "is only valid with --format peft"),
        (("--format", "gguf"), 2, "gguf"),
        (("--task", "two"), 1, "no expert 'two'"),
    ],
)
def test_wrong_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, message: str
) -> None:
    made = write(tmp_path / "bundle")
    task = () if "--task" in arguments else ("--task", "one")
    capsys.readouterr()
    assert export(made.bundle.path, tmp_path / "out", *task, *arguments) == code
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
