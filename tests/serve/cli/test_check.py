import json
import re
from pathlib import Path

import pytest

from serve.cli import main
from tests.merge.tiny import save_fine_tune, save_tiny


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("models")
    save_tiny(folder / "base")
    save_fine_tune(folder / "base", folder / "one", 1, size=0.12, embeddings=False)
    path = folder / "recipe.yml"
    path.write_text("base_model: base\nmodels: [{model: one}]\n")
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return (ended.value.code, *capsys.readouterr())  # type: ignore[return-value]


def test_a_good_recipe(recipe: Path, capsys: pytest.CaptureFixture[str]):
    code, out, err = run(capsys, "check", str(recipe), "--no-progress")
    assert (code, err) == (0, "")
    first, cost, last = out.splitlines()
    assert re.fullmatch(r"models\.one: differs from the base by 1\d\.\d\d% of the base's norm", first)
    assert cost.startswith("merging takes about ")
    assert last == f"{recipe}: 0 errors, 0 warnings"


def test_json_is_the_only_thing_on_stdout(recipe: Path, capsys: pytest.CaptureFixture[str]):
    code, out, err = run(capsys, "check", str(recipe), "--json")
    document = json.loads(out)
    assert code == 0
    assert "reading the weights" in err
    assert (document["errors"], document["warnings"], document["findings"]) == (0, 0, [])
    assert document["models"]["one"]["nearest"] is None
    assert set(document["cost"]) == {"seconds", "memory_bytes", "disk_bytes"}
    assert 0.05 < document["models"]["one"]["relative_norm"] < 0.2


def test_everything_wrong_is_listed_and_the_exit_status_says_so(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bad = recipe.with_name("bad.yml")
    bad.write_text("base_model: base\nmodels: [{model: absent}, {model: gone}]\n")
    code, out, _ = run(capsys, "check", str(bad), "--quick")
    assert code == 1
    lines = out.splitlines()
    assert [line.partition(": no model")[0] for line in lines[:2]] == ["error: models.absent", "error: models.gone"]
    assert lines[2] == f"{bad}: 2 errors, 0 warnings"
    code, out, _ = run(capsys, "check", str(bad), "--quick", "--json")
    assert code == 1
    assert [finding["subject"] for finding in json.loads(out)["findings"]] == ["models.absent", "models.gone"]
    code, out, err = run(capsys, "merge", str(bad), str(tmp_path / "out"))
    assert (code, out) == (1, "")
    assert err.splitlines() == lines[:2]
    assert not list(tmp_path.iterdir())
