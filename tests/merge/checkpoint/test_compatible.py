import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from merge.checkpoint import CheckpointError, check_compatible, open_checkpoint
from tests.merge.tiny import save_fine_tune, save_tiny


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    base = save_tiny(tmp_path / "base")
    return base, save_fine_tune(base, tmp_path / "tune", 1)


def check(pair: tuple[Path, Path]) -> None:
    check_compatible(open_checkpoint(pair[0]), [open_checkpoint(pair[1])])


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_fine_tune_fits(pair: tuple[Path, Path]) -> None:
    check(pair)


def test_tensors_and_config_are_compared_together(pair: tuple[Path, Path]) -> None:
    edit(pair[1] / "config.json", num_attention_heads=2, rms_norm_eps=1e-3)
    tensors = load_file(pair[1] / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["model.embed_tokens.weight"] = torch.zeros(5, 32)
    tensors["surplus"] = torch.zeros(1)
    save_file(tensors, pair[1] / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        check(pair)
    for part in ("num_attention_heads is 2", "rms_norm_eps", "model.norm.weight is missing", "surplus", "and 1 more"):
        assert part in str(caught.value)


def test_another_vocabulary_is_refused(pair: tuple[Path, Path]) -> None:
    tokenizer = json.loads((pair[1] / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (pair[1] / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="the vocabulary differs"):
        check(pair)
