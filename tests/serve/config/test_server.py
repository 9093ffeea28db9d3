import dataclasses
from pathlib import Path

import pytest

from serve.config import ApiSettings, ConnectionSettings, ServerSettings

BUNDLE = Path("bundle")


def test_the_defaults_are_local_and_open():
    settings = ServerSettings(BUNDLE)
    assert (settings.host, settings.port, settings.api.api_keys) == ("127.0.0.1", 8000, ())


def test_settings_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ServerSettings(BUNDLE).port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("port", -1), ("port", 65536)),
        *(("shutdown_timeout", -1.0), ("shutdown_timeout", float("inf")), ("shutdown_timeout", float("nan"))),
        *(("router_threshold", -0.1), ("router_threshold", 1.1)),
        *(("log_level", "loud"), ("log_format", "xml"), ("served_model_names", ("a", ""))),
    ],
)
def test_wrong_server_settings_are_named(field, value):
    with pytest.raises(ValueError, match=field.removesuffix("s").replace("served_model_name", "served model name")):
        ServerSettings(BUNDLE, **{field: value})


@pytest.mark.parametrize("keys", [("",), ("good", " padded"), ("line\nbreak",)])
def test_keys_that_no_header_could_carry(keys):
    with pytest.raises(ValueError, match="API key"):
        ApiSettings(api_keys=keys)


@pytest.mark.parametrize("field", ["request_timeout", "engine_timeout"])
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_timeouts_are_seconds_or_unset(field: str, value: float):
    with pytest.raises(ValueError, match=field):
        ApiSettings(**{field: value})


@pytest.mark.parametrize("field", ["header_timeout", "write_timeout", "keep_alive_timeout"])
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_bounds_on_connections_are_seconds(field: str, value: float):
    with pytest.raises(ValueError, match=field):
        ConnectionSettings(**{field: value})


def test_there_is_at_least_one_connection():
    with pytest.raises(ValueError, match="max_connections"):
        ConnectionSettings(max_connections=0)


@pytest.mark.parametrize("origin", ["example.org", "https://example.org/", ""])
def test_origins_are_origins(origin: str):
    with pytest.raises(ValueError, match="origin"):
        ApiSettings(allowed_origins=(origin,))


@pytest.mark.parametrize("field", ["max_body_bytes", "max_choices", "max_header_bytes", "body_timeout"])
def test_limits_are_positive(field):
    with pytest.raises(ValueError, match=field):
        ApiSettings(**{field: 0})


@pytest.mark.parametrize("path", ["llm", "/llm/", "/", "/a%20b"])
def test_a_root_path_is_a_prefix(path: str):
    with pytest.raises(ValueError, match="root_path"):
        ApiSettings(root_path=path)
