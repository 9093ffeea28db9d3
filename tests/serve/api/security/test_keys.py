import logging
from pathlib import Path

import pytest

from serve.api.security.auth import Access, KeyRing
from serve.config import ApiSettings


def test_keys_of_settings_and_files(tmp_path: Path):
    users, admins = tmp_path / "users", tmp_path / "admins"
    users.write_text("# ours\n\n  one  \nzwei-ü\n")
    admins.write_text("root\n")
    settings = ApiSettings(("three",), users, ("chief",), admins)
    keys = KeyRing(settings)
    for key in ("one", "zwei-ü", "three"):
        assert keys.access(key.encode()) is Access.USE
    for key in ("root", "chief"):
        assert keys.access(key.encode()) is Access.ADMINISTER
    for key in (b"", b"# ours", b"on", b"onee", b"ONE", None):
        assert keys.access(key) is Access.NONE
    assert (keys.open, keys.administrable) == (False, True)


def test_without_keys_use_is_open_and_administration_closed():
    keys = KeyRing(ApiSettings())
    assert keys.access(None) is keys.access(b"any") is Access.USE
    assert (keys.open, keys.administrable) == (True, False)


def test_an_admin_key_alone_leaves_use_open():
    keys = KeyRing(ApiSettings(admin_api_keys=("root",)))
    assert keys.access(None) is Access.USE
    assert keys.access(b"root") is Access.ADMINISTER


def test_files_are_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "keys"
    path.write_text("old\n")
    keys = KeyRing(ApiSettings(api_key_file=path))
    path.write_text("new\n")
    assert keys.access(b"old") is Access.USE
    with caplog.at_level(logging.INFO, logger="overtone"):
        keys.reload()
        assert (keys.access(b"old"), keys.access(b"new")) == (Access.NONE, Access.USE)
        path.write_text("\n")
        keys.reload()
        path.unlink()
        keys.reload()
    assert keys.access(b"new") is Access.USE
    assert "1 for use, 0 for administration" in caplog.text
    assert "holds no API key" in caplog.text
    assert "cannot read" in caplog.text
    assert "new" not in caplog.text


@pytest.mark.parametrize("content", [None, b"", b"# nothing\n", b"\xff\xfe", b"a\x00b"])
def test_a_file_without_good_keys_does_not_open_the_server(tmp_path: Path, content):
    if content is not None:
        (tmp_path / "keys").write_bytes(content)
    with pytest.raises(ValueError, match="keys"):
        KeyRing(ApiSettings(api_key_file=tmp_path / "keys"))


def test_a_byte_order_mark_is_not_part_of_the_first_key(tmp_path: Path):
    (tmp_path / "keys").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    keys = KeyRing(ApiSettings(api_key_file=tmp_path / "keys"))
    assert keys.access(b"one") is keys.access(b"two") is Access.USE


def test_a_known_key_has_a_fingerprint():
    keys = KeyRing(ApiSettings(("one",), admin_api_keys=("root",)))
    assert keys.identify(b"one") == (Access.USE, "7692c3ad")  # printf one | sha256sum
    assert keys.identify(b"root") == (Access.ADMINISTER, "4813494d")
    assert keys.identify(b"two") == keys.identify(None) == (Access.NONE, None)
    assert KeyRing(ApiSettings()).identify(b"two") == (Access.USE, None)
