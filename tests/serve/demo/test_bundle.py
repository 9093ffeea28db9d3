from pathlib import Path

import pytest

from kernels.compiled.build import cache_dir
from serve.demo import demo as demo_bundle
from serve.demo import tiny, zoo_bundle
from tests.merge.bundle.test_writer import write


@pytest.fixture
def merges(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where merges were written, each of them a small bundle in place of the zoo's."""
    made: list[Path] = []

    def merge_recipe(recipe: Path, out: Path, **settings: object) -> None:
        assert recipe == tiny.RECIPE
        made.append(out)
        write(out, overwrite=True)

    monkeypatch.setattr(demo_bundle, "merge_recipe", merge_recipe)
    return made


def test_it_is_merged_once(merges: list[Path], tmp_path: Path) -> None:
    first, second = zoo_bundle(tmp_path), zoo_bundle(tmp_path)
    assert first == second
    assert merges == [first]


def test_a_damaged_bundle_is_merged_again(merges: list[Path], tmp_path: Path) -> None:
    bundle = zoo_bundle(tmp_path)
    (bundle / "experts" / "roman.safetensors").unlink()
    assert zoo_bundle(tmp_path) == bundle
    assert len(merges) == 2


def test_another_recipe_is_another_bundle(merges: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = zoo_bundle(tmp_path)
    (tmp_path / "recipe.yml").write_text(tiny.RECIPE.read_text() + "# changed\n")
    monkeypatch.setattr(tiny, "RECIPE", tmp_path / "recipe.yml")
    assert zoo_bundle(tmp_path) != first


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"OVERTONE_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/overtone"),
        ({"HOME": "/c"}, "/c/.cache/overtone"),
    ],
)
def test_the_cache_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name in ("OVERTONE_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_dir() == Path(expected)
