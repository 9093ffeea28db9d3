import pytest
import typer

from serve.cli import app
from serve.cli.options import check_variables

PROGRAM = typer.main.get_command(app._program())


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("OVERTONE_APIKEY", "OVERTONE_API_KEY"),
        ("OVERTONE_API_KEYS", "OVERTONE_API_KEY"),
        ("OVERTONE_PORTT", "OVERTONE_PORT"),
        ("OVERTONE_MAX_NUM_SEQ", "OVERTONE_MAX_NUM_SEQS"),
        ("OVERTONE_CACHEDIR", "OVERTONE_CACHE_DIR"),
        ("OVERTONE_SSL_CERT_FILE", "OVERTONE_SSL_CERTFILE"),
    ],
)
def test_a_misspelt_variable_is_refused(name: str, meant: str):
    with pytest.raises(ValueError, match=f"^the environment variable {name} is unknown; did you mean {meant}\\?$"):
        check_variables(PROGRAM, {"PATH": "/bin", name: "secret"})


def test_a_variable_like_none_is_refused():
    with pytest.raises(ValueError, match="OVERTONE_XYZZYX is unknown; `--help` of a command lists"):
        check_variables(PROGRAM, {"OVERTONE_XYZZYX": ""})


def test_variables_of_all_commands_and_of_kubernetes_pass():
    names = ("API_KEY", "MAX_NUM_SEQS", "REPLICAS", "USERS", "BUNDLE", "CACHE_DIR", "COMPILED", "ISA", "TEST_INSTALL")
    links = ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT_8000_TCP", "PORT_8000_TCP_ADDR")
    others = ("WEB_SERVICE_HOST", "WEB_PORT_80_TCP_PROTO")
    check_variables(PROGRAM, {f"OVERTONE_{name}": "1" for name in (*names, *links, *others)})
    check_variables(PROGRAM, {"OVERTONE_WEB_PORT": "tcp://10.0.0.1:80", "OVERTON": "x"})


def test_a_port_that_kubernetes_has_set_is_explained():
    with pytest.raises(ValueError, match="enableServiceLinks: false"):
        check_variables(PROGRAM, {"OVERTONE_PORT": "tcp://10.0.0.1:8000"})


def test_the_command_line_checks_them_and_still_helps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("OVERTONE_APIKEY", "secret")
    for arguments, code in (
        (["serve", "b"], 1),
        (["merge", "r", "o"], 1),
        (["serve", "--help"], 0),
        (["--version"], 0),
    ):
        with pytest.raises(SystemExit) as ended:
            app.main(arguments)
        assert ended.value.code == code, arguments
    error = capsys.readouterr().err
    assert "did you mean OVERTONE_API_KEY?" in error
    assert "secret" not in error
