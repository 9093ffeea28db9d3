"""A merge that is killed leaves no bundle or a complete one, and can be resumed."""

import errno
import hashlib
import os
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from merge import run as merging
from merge.bundle import BundleError, open_bundle
from merge.bundle import writer as writing
from merge.run import merge_recipe
from merge.staging import FLOATS, JOURNAL
from tests.merge.interrupted import merge_killed
from tests.merge.tiny import save_fine_tune, save_tiny

pytestmark = pytest.mark.usefixtures("fork_server")

LAST = 10_000
"""More events than a merge has."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("inputs")
    save_tiny(root / "base", dtype=torch.bfloat16)
    for seed, name in enumerate(("one", "two", "three")):
        save_fine_tune(root / "base", root / name, seed)
    path = root / "recipe.yml"
    path.write_text(
        "name: tiny\nbase_model: base\nmodels: [{model: one}, {model: two}, {model: three}]\nout_shard_size: 10KB\n"
    )
    return path


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a merge that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    merge_recipe(recipe, out, progress=False)
    return contents(out)


def contents(bundle: Path) -> dict[str, bytes]:
    return {str(f.relative_to(bundle)): f.read_bytes() for f in sorted(bundle.rglob("*")) if f.is_file()}


def count_events(recipe: Path, folder: Path) -> int:
    """The number of moments at which the merge is killed."""
    low, high = 1, LAST
    while low < high:  # the first that is too late
        middle = (low + high) // 2
        if merge_killed(recipe, folder / f"count-{middle}" / "out", middle, resume=False):
            low = middle + 1
        else:
            high = middle
    return low - 1


def test_killed_again_and_again_it_is_resumed_to_the_same_bytes(
    recipe: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    events = count_events(recipe, tmp_path)
    assert events > 50
    rng = random.Random(0)
    moments = sorted({*rng.sample(range(1, events + 1), 8), events - 1, events})
    for moment in moments:
        folder = tmp_path / str(moment)
        folder.mkdir()
        out = folder / "out"
        assert merge_killed(recipe, out, moment, resume=False)
        if out.exists():
            open_bundle(out, verify=True)
            assert contents(out) == whole
            continue
        # Killed once more while it is resumed, at another moment, unless it is done before that.
        merge_killed(recipe, out, rng.randrange(1, events), resume=True)
        if not out.exists():
            merge_recipe(recipe, out, progress=False, resume=True)
        open_bundle(out, verify=True)
        assert contents(out) == whole
        if moment < events - 1:
            assert [item.name for item in folder.iterdir()] == ["out"]


def test_nothing_decides_the_bytes_but_recipe_and_inputs(recipe: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    merge_recipe(recipe, tmp_path / "again", progress=False)
    assert contents(tmp_path / "again") == whole


def interrupted(recipe: Path, out: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> BaseException:
    """Merge until the second expert is finished, and no further."""
    run_jobs = merging.run_jobs

    def two(*arguments: object) -> object:
        for number, report in enumerate(run_jobs(*arguments)):  # type: ignore[arg-type]
            yield report
            if number == 1:
                raise error

    with monkeypatch.context() as patch, pytest.raises(error) as raised:
        patch.setattr(merging, "run_jobs", two)
        merge_recipe(recipe, out, progress=False)
    return raised.value


def jobs_done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the experts that are cut from here on."""
    cut: list[str] = []
    run_jobs = merging.run_jobs

    def watched(jobs: list, workers: int, pool: object) -> object:
        cut.extend(job.name for job in jobs)
        return run_jobs(jobs, workers, pool)

    monkeypatch.setattr(merging, "run_jobs", watched)
    return cut


def pose_as_killed(out: Path) -> Path:
    """Rename what this process left as if it belonged to a process that has ended."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    (left,) = out.parent.glob(".out.staging-*")
    return left.rename(left.with_name(f".out.staging-{child}"))


def test_finished_parts_are_taken_over(
    recipe: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    interrupted(recipe, tmp_path / "out", monkeypatch, KeyboardInterrupt)
    pose_as_killed(tmp_path / "out")
    cut = jobs_done(monkeypatch)
    capsys.readouterr()
    report = merge_recipe(recipe, tmp_path / "out", resume=True)
    assert cut == ["two"]  # the experts come in the order of their names: one, three, two
    err = capsys.readouterr().err
    assert "backbone: reused" in err
    assert "expert three: reused" in err
    assert contents(tmp_path / "out") == whole
    assert [item.name for item in report.experts] == ["one", "three", "two"]
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


def test_a_part_that_was_damaged_is_made_again(
    recipe: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(recipe, tmp_path / "out", monkeypatch, KeyboardInterrupt)
    left = pose_as_killed(tmp_path / "out")
    file = left / "experts" / "one.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    cut = jobs_done(monkeypatch)
    merge_recipe(recipe, tmp_path / "out", progress=False, resume=True)
    assert cut == ["one", "two"]
    assert contents(tmp_path / "out") == whole


@pytest.mark.parametrize("damaged", [False, True])
def test_a_rounded_backbone_is_taken_over_with_the_merge_that_it_was_rounded_from(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damaged: bool
) -> None:
    rounded = recipe.with_name("rounded.yml")
    rounded.write_text(recipe.read_text() + "backbone: {storage: int4}\n")
    merge_recipe(rounded, tmp_path / "whole", progress=False)
    interrupted(rounded, tmp_path / "out", monkeypatch, KeyboardInterrupt)
    left = pose_as_killed(tmp_path / "out")
    if damaged:
        file = next((left / FLOATS).glob("*.safetensors"))
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    cut = jobs_done(monkeypatch)
    capsys.readouterr()
    merge_recipe(rounded, tmp_path / "out", resume=True)
    assert cut == ["two"]
    assert ("backbone: reused" in capsys.readouterr().err) != damaged
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not (tmp_path / "out" / FLOATS).exists()


@pytest.mark.parametrize("change", ["recipe", "input", "journal"])
def test_what_was_made_from_something_else_is_not_taken_over(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    interrupted(recipe, tmp_path / "out", monkeypatch, KeyboardInterrupt)
    left = pose_as_killed(tmp_path / "out")
    other = recipe
    if change == "recipe":
        other = recipe.with_name("other.yml")
        other.write_text(recipe.read_text() + "parameters: {lambda: 0.1}\n")
    elif change == "input":
        shutil.copytree(recipe.parent, tmp_path / "inputs")
        save_fine_tune(recipe.parent / "base", tmp_path / "inputs" / "two", 77)
        other = tmp_path / "inputs" / "recipe.yml"
    else:
        (left / JOURNAL).write_text("{")
    cut = jobs_done(monkeypatch)
    merge_recipe(other, tmp_path / "out", progress=False, resume=True)
    assert cut == ["one", "three", "two"]
    assert {item.name for item in tmp_path.iterdir()} <= {"out", "inputs"}


def test_without_resume_it_starts_over(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(recipe, tmp_path / "out", monkeypatch, KeyboardInterrupt)
    pose_as_killed(tmp_path / "out")
    cut = jobs_done(monkeypatch)
    merge_recipe(recipe, tmp_path / "out", progress=False)
    assert len(cut) == 3
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [OSError, ValueError, KeyboardInterrupt])
def test_a_failure_keeps_what_was_finished(
    recipe: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    raised = interrupted(recipe, tmp_path / "out", monkeypatch, error)
    (note,) = raised.__notes__
    assert "finished parts (backbone, experts/one, experts/three) are kept" in note
    assert "--resume" in note
    cut = jobs_done(monkeypatch)
    merge_recipe(recipe, tmp_path / "out", progress=False, resume=True)
    assert cut == ["two"]
    assert contents(tmp_path / "out") == whole
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


def test_a_failure_in_the_last_step_keeps_what_was_finished(
    recipe: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"No space left.*\.out\.staging-"):
        patch.setattr(writing, "fsync_path", full)
        merge_recipe(recipe, tmp_path / "out", progress=False)
    cut = jobs_done(monkeypatch)
    merge_recipe(recipe, tmp_path / "out", progress=False, resume=True)
    assert cut == []
    assert contents(tmp_path / "out") == whole
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


def test_a_failure_before_the_first_part_leaves_nothing(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(merging, "write_backbone", failing)
    with pytest.raises(OSError, match="no"):
        merge_recipe(recipe, tmp_path / "out", progress=False)
    assert not list(tmp_path.iterdir())


def test_a_second_merge_to_the_same_place_is_refused(
    recipe: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_jobs = merging.run_jobs
    refused: list[str] = []

    def with_a_rival(*arguments: object) -> object:
        with monkeypatch.context() as patch, pytest.raises(BundleError, match="another merge is writing") as raised:
            patch.setattr(os, "getpid", lambda: 1)
            merge_recipe(recipe, tmp_path / "out", overwrite=True, progress=False)
        refused.append(str(raised.value))
        return run_jobs(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(merging, "run_jobs", with_a_rival)
    merge_recipe(recipe, tmp_path / "out", progress=False)
    assert len(refused) == 1
    assert contents(tmp_path / "out") == whole
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_appears_at_the_place_during_a_merge_is_left_alone(
    recipe: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    run_jobs = merging.run_jobs

    def with_notes(*arguments: object) -> object:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "notes.txt").write_text("precious")
        return run_jobs(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(merging, "run_jobs", with_notes)
    with pytest.raises(BundleError, match=r"was left alone: the finished bundle is at .*out-2$"):
        merge_recipe(recipe, tmp_path / "out", overwrite=overwrite, progress=False)
    assert (tmp_path / "out" / "notes.txt").read_text() == "precious"
    assert contents(tmp_path / "out-2") == whole
    assert {item.name for item in tmp_path.iterdir()} == {"out", "out-2"}


def test_every_file_of_a_bundle_is_hashed_once(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    file_digest = hashlib.file_digest

    def watched(file: Any, name: str) -> Any:
        read.append(Path(file.name))
        return file_digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", watched)
    merge_recipe(recipe, tmp_path / "out", progress=False)
    hashed = Counter(path.name for path in read if path.suffix == ".safetensors" and "staging" in str(path))
    assert hashed == Counter(path.name for path in (tmp_path / "out").rglob("*.safetensors"))
    open_bundle(tmp_path / "out", verify=True)
