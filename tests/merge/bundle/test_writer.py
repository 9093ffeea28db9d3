import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from merge.bundle import BundleError, BundleWriter, ManifestFields, backbone_digest, open_bundle, write_expert
from tests.merge.bundle.test_expert import make_expert

FIELDS = ManifestFields(name="zoo", created="2026-01-01T00:00:00Z")


def fill(writer: BundleWriter, scale: float = 1.0, expert: str = "roman") -> None:
    save_file({"layer.weight": scale * torch.ones(5, 17)}, writer.path / "backbone" / "model.safetensors")
    digest = backbone_digest(writer.path / "backbone")
    made = make_expert(expert)
    write_expert(
        writer.path / "experts" / f"{expert}.safetensors", type(made)(**{**vars(made), "backbone_digest": digest})
    )


def write(out: Path, scale: float = 1.0, overwrite: bool = False) -> None:
    with BundleWriter(out, overwrite) as writer:
        fill(writer, scale)
        writer.finish(FIELDS)


def test_what_was_written_opens_and_verifies(tmp_path: Path) -> None:
    write(tmp_path / "out")
    bundle = open_bundle(tmp_path / "out", verify=True)
    assert bundle.expert_names == ("roman",)
    assert bundle.read_expert("roman").name == "roman"
    assert bundle.router_dir is None
    card = bundle.card("roman")
    assert (card.entries, card.nnz, card.bytes) == (5 * 3 + 7, 22, 5 * 3 * 4 + 7 * 4)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(BundleError, match="no expert 'greek'.*roman"):
        bundle.expert_path("greek")


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with BundleWriter(tmp_path / name) as writer:
            fill(writer)
            writer.finish(ManifestFields(name="zoo"))
    first, second = (sorted(path for path in (tmp_path / name).rglob("*") if path.is_file()) for name in "ab")
    assert [path.name for path in first] == [path.name for path in second]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert '"created"' not in (tmp_path / "a" / "bundle.json").read_text()
    os.utime(tmp_path / "a" / "bundle.json", (0, 1_700_000_000))
    assert open_bundle(tmp_path / "a").manifest.created == "2023-11-14T22:13:20+00:00"


def test_bundles_that_say_when_they_were_merged_still_open(tmp_path: Path) -> None:
    write(tmp_path / "out")
    assert open_bundle(tmp_path / "out").manifest.created == "2026-01-01T00:00:00Z"


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), BundleWriter(tmp_path / "out") as writer:
        fill(writer)
        raise RuntimeError
    assert not any(tmp_path.iterdir())


def test_leaving_without_finish_leaves_the_old_bundle(tmp_path: Path) -> None:
    write(tmp_path / "out")
    before = (tmp_path / "out" / "bundle.json").read_bytes()
    with BundleWriter(tmp_path / "out", overwrite=True) as writer:
        fill(writer, scale=2.0)
    assert (tmp_path / "out" / "bundle.json").read_bytes() == before
    open_bundle(tmp_path / "out", verify=True)


def test_overwrite_replaces_the_whole_directory(tmp_path: Path) -> None:
    write(tmp_path / "out")
    (tmp_path / "out" / "stray").write_text("x")
    old = open_bundle(tmp_path / "out").manifest.backbone_digest
    write(tmp_path / "out", scale=2.0, overwrite=True)
    assert open_bundle(tmp_path / "out", verify=True).manifest.backbone_digest != old
    assert not (tmp_path / "out" / "stray").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_targets_in_the_way(tmp_path: Path) -> None:
    write(tmp_path / "out")
    with pytest.raises(BundleError, match="--overwrite"), BundleWriter(tmp_path / "out"):
        pass
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(BundleError, match="not belong to a bundle"), BundleWriter(tmp_path / "other", overwrite=True):
        pass
    (tmp_path / "plain").touch()
    with pytest.raises(BundleError, match="is a file"), BundleWriter(tmp_path / "plain"):
        pass


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        writer = BundleWriter(tmp_path / "out")
        writer.__enter__()
        os._exit(9)
    os.waitpid(child, 0)
    assert [path.name for path in tmp_path.iterdir()] == [f".out.staging-{child}"]
    write(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_old_bundle_moved_aside_by_a_killed_writer_comes_back(tmp_path: Path) -> None:
    write(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / ".out.previous-1")
    with pytest.raises(BundleError, match="--overwrite"):
        write(tmp_path / "out", scale=2.0)
    open_bundle(tmp_path / "out", verify=True)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_have_the_mode_that_the_umask_allows(tmp_path: Path, umask: int, mode: int) -> None:
    """safetensors creates its files for their owner alone, and inputs may have been copied with any mode."""
    before = os.umask(umask)
    try:
        with BundleWriter(tmp_path / "out") as writer:
            fill(writer)
            config = writer.path / "backbone" / "config.json"
            config.write_text("{}")
            config.chmod(0o400)
            writer.finish(FIELDS)
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) == 4
    assert {path.stat().st_mode & 0o777 for path in files} == {mode}


def test_an_expert_of_another_backbone_is_not_bundled(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cut against"), BundleWriter(tmp_path / "out") as writer:
        fill(writer)
        write_expert(writer.path / "experts" / "roman.safetensors", make_expert())
        writer.finish(FIELDS)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: (out / "bundle.json").unlink(), "is not a bundle"),
        (lambda out: (out / "bundle.json").write_text("{"), "the document"),
        (lambda out: (out / "bundle.json").write_text('{"name": 3}'), "name"),
        (lambda out: (out / "experts" / "roman.safetensors").unlink(), "roman.safetensors is missing"),
        (lambda out: (out / "experts" / "roman.safetensors").write_bytes(b""), "has 0 bytes"),
    ],
)
def test_damaged_bundles_say_what_is_wrong(tmp_path: Path, damage, message: str) -> None:
    write(tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(BundleError, match=message):
        open_bundle(tmp_path / "out")


def test_verify_reads_the_bytes(tmp_path: Path) -> None:
    write(tmp_path / "out")
    weights = tmp_path / "out" / "backbone" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    open_bundle(tmp_path / "out")
    with pytest.raises(BundleError, match="was changed after merging"):
        open_bundle(tmp_path / "out", verify=True)


def test_a_newer_format_is_named(tmp_path: Path) -> None:
    write(tmp_path / "out")
    path = tmp_path / "out" / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 2}))
    with pytest.raises(BundleError, match="bundle format 2; this version reads 1"):
        open_bundle(tmp_path / "out")


def test_no_bundle_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle at"):
        open_bundle(tmp_path / "nowhere")
