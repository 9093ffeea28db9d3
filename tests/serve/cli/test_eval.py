import pytest

from serve.cli import main
from tests.serve.conftest import TinyBundle


def test_a_bundle_of_other_models_is_refused_with_the_reason(
    tiny: TinyBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["eval", str(tiny.bundle.path)])
    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert "was not merged from the embedded models, whose tasks are camel, " in told
    assert "has prompts for these tasks alone" in told
