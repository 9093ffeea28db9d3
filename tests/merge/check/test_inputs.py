"""Files that cannot be opened, all reported at once."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from merge.check import check_recipe, checked_inputs
from tests.merge.check.conftest import edit_json, errors, told, write_recipe

WEIGHTS = "model.safetensors"


def shard(model: Path) -> None:
    """Spread a model over two files with an index."""
    tensors = load_file(model / WEIGHTS)
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, model / file)
    (model / WEIGHTS).unlink()
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (model / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def with_header(model: Path, change: Callable[[dict[str, dict[str, object]]], None]) -> None:
    """Let a file's header lie about its data."""
    raw = (model / WEIGHTS).read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    change(header)
    text = json.dumps(header).encode()
    (model / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def pickled(model: Path) -> None:
    (model / WEIGHTS).unlink()
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def truncated(model: Path) -> None:
    raw = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(raw[:-100])


def overlapping(model: Path) -> None:
    def change(header: dict[str, dict[str, object]]) -> None:
        first, second, *_ = sorted(header, key=lambda name: header[name]["data_offsets"])  # type: ignore[arg-type]
        begin, end = header[second]["data_offsets"]  # type: ignore[misc]
        assert header[first]["data_offsets"][1] == begin  # type: ignore[index]
        header[second]["data_offsets"] = [begin - 4, end - 4]

    with_header(model, change)


def lying(model: Path) -> None:
    with_header(model, lambda header: header["model.norm.weight"].update(shape=[31]))


def traversing(model: Path) -> None:
    shard(model)
    index = json.loads((model / f"{WEIGHTS}.index.json").read_text())["weight_map"]
    edit_json(model / f"{WEIGHTS}.index.json", weight_map={**index, "lm_head.weight": "../one/a.safetensors"})


def absolute(model: Path) -> None:
    shard(model)
    index = json.loads((model / f"{WEIGHTS}.index.json").read_text())["weight_map"]
    edit_json(model / f"{WEIGHTS}.index.json", weight_map={**index, "lm_head.weight": "/etc/passwd"})


def shardless(model: Path) -> None:
    shard(model)
    (model / "a.safetensors").unlink()


def keyless(model: Path) -> None:
    shard(model)
    index = json.loads((model / f"{WEIGHTS}.index.json").read_text())["weight_map"]
    edit_json(model / f"{WEIGHTS}.index.json", weight_map={**index, "ghost": "a.safetensors"})


def stale(model: Path) -> None:
    weights = (model / WEIGHTS).read_bytes()
    shard(model)
    (model / WEIGHTS).write_bytes(weights)


def quantised_by_config(model: Path) -> None:
    edit_json(model / "config.json", quantization_config={"quant_method": "gptq"})


def quantised_by_dtype(model: Path) -> None:
    with_header(
        model,
        lambda header: header["model.norm.weight"].update(dtype="F8_E4M3", shape=[128]),
    )


def packed(model: Path) -> None:
    def change(header: dict[str, dict[str, object]]) -> None:
        header["model.layers.0.mlp.up_proj.qweight"] = header.pop("model.layers.0.mlp.up_proj.weight")
        header["model.layers.0.mlp.up_proj.qweight"].update(dtype="I32")

    with_header(model, change)


def pointer(model: Path) -> None:
    (model / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n")


FAULTS = [
    (pickled, ["pickled weights only", "safe_serialization=True"]),
    (truncated, ["truncated or damaged"]),
    (overlapping, ["overlaps the tensor before it"]),
    (lying, ["model.norm.weight F32 [31] needs 124 bytes; the header gives 128"]),
    (traversing, ["points outside its directory: '../one/a.safetensors'"]),
    (absolute, ["points outside its directory: '/etc/passwd'"]),
    (shardless, ["the shard a.safetensors that model.safetensors.index.json names is missing"]),
    (keyless, ["ghost is in the index but not in the shard"]),
    (stale, ["remove the one that is stale"]),
    (quantised_by_config, ["quantization_config"]),
    (quantised_by_dtype, ["model.norm.weight is F8_E4M3: quantised"]),
    (packed, ["qweight is I32: quantised"]),
    (pointer, ["a Git LFS pointer"]),
]


@pytest.mark.parametrize(("spoil", "parts"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_an_input_that_cannot_be_opened_is_told(models: Path, spoil: Callable[[Path], None], parts: list[str]) -> None:
    spoil(models / "two")
    found = errors(models, quick=True)
    assert found
    assert all(message.startswith("models.two: ") for message in found)
    assert all(any(part in message for message in found) for part in parts), found


def test_everything_is_told_at_once(models: Path) -> None:
    pickled(models / "one")
    shard(models / "two")
    (models / "two" / "a.safetensors").unlink()
    (models / "two" / "b.safetensors").write_bytes(b"nothing")
    edit_json(models / "base" / "config.json", quantization_config={})
    truncated(models / "base")
    path = write_recipe(models, calibration={"file": "gone.jsonl"})
    (models / "out").mkdir()
    (models / "out" / "file").touch()
    found = told(check_recipe(path, models / "out"), "error")
    assert [message.partition(":")[0] for message in found] == [
        "base", "base", "models.one", "models.two", "models.two", "calibration", "output",
    ]  # fmt: skip


def test_every_fault_of_a_recipe_is_told_with_its_place(models: Path) -> None:
    write_recipe(models, merge_methd="fr", dtype="float8", experts={"densty": 1})
    found = errors(models)
    assert len(found) == 3
    assert all(message.startswith(f"recipe: {models / 'recipe.yml'}: ") for message in found)
    assert "did you mean 'merge_method'?" in " ".join(found)
    assert "did you mean 'density'?" in " ".join(found)


def test_a_missing_model_says_that_nothing_is_downloaded(models: Path) -> None:
    write_recipe(models, models=[{"model": "org/name"}, {"model": "two@main"}, {"model": "none", "name": "x"}])
    found = " | ".join(errors(models))
    assert "nothing is downloaded" in found
    assert "revisions are not supported" in found
    assert f"no model directory at {models / 'none'}" in found


def test_an_adapter_is_no_base(models: Path) -> None:
    shutil.copytree(models / "one", models / "adapter")
    (models / "adapter" / "adapter_config.json").write_text("{}")
    (models / "adapter" / WEIGHTS).rename(models / "adapter" / "adapter_model.safetensors")
    write_recipe(models, base_model="adapter")
    assert "is an adapter; a base is a full checkpoint" in errors(models)[0]


def test_nothing_is_wrong_with_good_inputs(models: Path) -> None:
    report = check_recipe(models / "recipe.yml", models / "out")
    assert report.findings == ()
    assert report.errors == 0
    assert set(report.lineages) == {"one", "two"}
    assert not (models / "out").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"])
@pytest.mark.parametrize("model", ["base", "two"])
def test_files_that_may_not_be_read_are_findings(
    models: Path, name: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (models / model / name).touch()

    def refusing(read: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
            if path == models / model / name:
                raise PermissionError(13, "Permission denied", str(path))
            return read(path, *arguments, **options)

        return refuse

    for method in ("open", "read_bytes", "read_text"):
        monkeypatch.setattr(Path, method, refusing(getattr(Path, method)))
    found = errors(models, quick=True)
    assert found
    assert all(f"{name} cannot be read: Permission denied" in message for message in found), found


def test_metadata_that_is_null_is_read(models: Path) -> None:
    with_header(models / "two", lambda header: header.update(__metadata__=None))  # type: ignore[call-overload]
    assert errors(models, quick=True) == []


@pytest.mark.parametrize(
    ("file", "message"),
    [("model-q4.gguf", "but GGUF files"), ("consolidated.safetensors", "but Mistral's own consolidated files")],
)
def test_weights_of_another_format_are_named(models: Path, file: str, message: str) -> None:
    (models / "two" / WEIGHTS).rename(models / "two" / file)
    assert message in errors(models, quick=True)[0]


def test_a_file_in_the_place_of_a_directory(models: Path) -> None:
    (models / "two.gguf").touch()
    write_recipe(models, models=[{"model": "two.gguf"}, {"model": "one/config.json", "name": "x"}])
    broken, file = errors(models, quick=True)
    assert "two.gguf is not a readable GGUF file" in broken
    assert file.endswith("that is a file; name the directory that holds it")


def test_files_beside_the_weights_are_no_input(models: Path) -> None:
    before = checked_inputs(models / "recipe.yml", models / "out")[0].digests()
    shutil.copy(models / "base" / WEIGHTS, models / "base" / "consolidated.safetensors")
    assert checked_inputs(models / "recipe.yml", models / "out")[0].digests() == before
