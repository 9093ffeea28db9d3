import dataclasses
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from merge.bundle import (
    Bundle,
    BundleError,
    ExpertCard,
    Manifest,
    MissingFileError,
    backbone_digest,
    model_name,
    open_bundle,
    open_model,
)
from tests.merge.bundle.test_writer import write
from tests.merge.tiny import save_tiny


class Counted(tuple[ExpertCard, ...]):
    """Counts how often it is gone through."""

    passes = 0

    def __iter__(self) -> Iterator[ExpertCard]:
        Counted.passes += 1
        return super().__iter__()


def test_thousands_of_experts_are_found_without_a_search_each(tmp_path: Path) -> None:
    write(tmp_path / "out")
    manifest: Manifest = open_bundle(tmp_path / "out").manifest
    (card,) = manifest.experts
    cards = Counted(card.model_copy(update={"name": f"e{number:04}", "nnz": number}) for number in range(2000))
    bundle = Bundle(tmp_path / "out", manifest.model_copy(update={"experts": cards}))
    Counted.passes = 0
    names = bundle.expert_names
    assert [bundle.card(name).nnz for name in names] == list(range(2000))
    assert bundle.expert_path("e1999") == tmp_path / "out" / "experts" / "e1999.safetensors"
    assert Counted.passes <= 2


def test_a_model_directory_is_a_bundle_without_experts(tmp_path: Path) -> None:
    model = tmp_path / "llama"
    save_tiny(model)
    opened = open_model(model)
    assert (opened.manifest.name, opened.expert_names, opened.router_dir) == ("llama", (), None)
    assert opened.backbone_dir == model
    assert opened.manifest.backbone_digest == backbone_digest(model)
    assert opened.manifest.backbone_bytes == (model / "model.safetensors").stat().st_size
    assert datetime.fromisoformat(opened.manifest.created).tzinfo is not None
    assert dataclasses.replace(opened, other_router=tmp_path).router_dir == tmp_path


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("models/qwen", "qwen"),
        ("bundles/mine/backbone", "mine"),
        ("hub/models--Qwen--Qwen2.5-0.5B/snapshots/06065", "Qwen2.5-0.5B"),
        ("/", "model"),
    ],
)
def test_what_a_model_is_called(path: str, name: str) -> None:
    assert model_name(Path(path)) == name


def test_what_is_neither_a_bundle_nor_a_model(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="is not a bundle"):
        open_model(tmp_path)
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").touch()
    with pytest.raises(BundleError, match=r"lora is a LoRA adapter: serve the model .*--lora-modules NAME=\S+lora$"):
        open_model(tmp_path / "lora")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BundleError, match="holds no .safetensors file"):
        open_model(tmp_path)
