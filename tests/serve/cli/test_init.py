from pathlib import Path

import pytest

from serve.cli import main
from tests.merge.tiny import save_fine_tune, save_tiny


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return (ended.value.code, *capsys.readouterr())  # type: ignore[return-value]


def test_init_prints_a_recipe_that_check_accepts(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save_tiny(tmp_path / "base")
    save_fine_tune(tmp_path / "base", tmp_path / "one", 1, size=0.12, embeddings=False)
    code, out, err = run(capsys, "init", str(tmp_path / "base"), str(tmp_path / "one"))
    assert code == 0
    assert err.startswith("missing: prompts: without them ")
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(out)
    code, out, _ = run(capsys, "check", str(recipe), "--no-progress")
    assert code == 0
    assert out.endswith(f"{recipe}: 0 errors, 0 warnings\n")


def test_a_base_that_is_missing_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code, out, err = run(capsys, "init", str(tmp_path / "gone"), str(tmp_path))
    assert (code, out) == (1, "")
    assert err == (
        f"error: {tmp_path / 'gone'} is not a model: it must be a directory with config.json and safetensors, or a "
        "GGUF file\n"
    )
