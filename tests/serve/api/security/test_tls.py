"""Files for TLS: what is wrong with one is said with its name."""

import logging
import shutil
import ssl
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from serve.api.security.tls import Certificates, TlsError
from serve.config import TlsSettings


def openssl(*arguments: str) -> None:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("there is no openssl to make a certificate with")
    subprocess.run([program, *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two certificates with their keys, the first key also encrypted."""
    path = tmp_path_factory.mktemp("tls")
    for name in ("one", "two"):
        files = ("-keyout", str(path / f"{name}.key"), "-out", str(path / f"{name}.pem"))
        openssl(*f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name}".split(), *files)
    openssl("rsa", "-aes256", "-passout", "pass:good", "-in", str(path / "one.key"), "-out", str(path / "locked.key"))
    (path / "text").write_text("no PEM")
    (path / "both.pem").write_text((path / "one.pem").read_text() + (path / "locked.key").read_text())
    return path


def settings(directory: Path, cert: str = "one.pem", key: str | None = "one.key", **others) -> TlsSettings:
    return TlsSettings(directory / cert, None if key is None else directory / key, **others)


def test_files_that_fit(directory: Path):
    for one in (
        settings(directory),
        settings(directory, key="locked.key", keyfile_password="good"),
        settings(directory, "both.pem", None, keyfile_password="good"),
        settings(directory, ca_certs=directory / "two.pem"),
    ):
        mode = ssl.CERT_NONE if one.ca_certs is None else ssl.CERT_REQUIRED
        assert Certificates(one).context.verify_mode is mode


@pytest.mark.parametrize(
    ("given", "file", "words"),
    [
        ({"cert": "gone.pem"}, "gone.pem", "--ssl-certfile): No such file"),
        ({"cert": "text"}, "text", "--ssl-certfile) holds no certificate"),
        ({"key": "gone.key"}, "gone.key", "--ssl-keyfile): No such file"),
        ({"key": "text"}, "text", "--ssl-keyfile) cannot be read"),
        ({"key": "two.key"}, "two.key", "--ssl-keyfile) is not the certificate's"),
        ({"key": None}, "one.pem", "--ssl-certfile) cannot be read"),
        ({"key": "locked.key"}, "locked.key", "is encrypted; give --ssl-keyfile-password"),
        ({"cert": "both.pem", "key": None}, "both.pem", "is encrypted; give --ssl-keyfile-password"),
        ({"key": "locked.key", "keyfile_password": "bad"}, "locked.key", "--ssl-keyfile) cannot be read"),
        ({"ca_certs": "text"}, "text", "--ssl-ca-certs) holds no certificate"),
        ({"ca_certs": "gone"}, "gone", "--ssl-ca-certs): No such file"),
    ],
)
def test_what_is_wrong_names_the_file(directory: Path, given, file: str, words: str):
    if "ca_certs" in given:
        given = {**given, "ca_certs": directory / given["ca_certs"]}
    with pytest.raises(TlsError) as raised:
        Certificates(settings(directory, **given))
    assert str(directory / file) in str(raised.value)
    assert words in str(raised.value)


def test_a_renewed_certificate_that_does_not_fit_leaves_the_old_one(directory: Path, tmp_path: Path, caplog):
    for name in ("one.pem", "one.key"):
        shutil.copy(directory / name, tmp_path / name)
    found = replace(settings(directory), certfile=tmp_path / "one.pem", keyfile=tmp_path / "one.key")
    certificates = Certificates(found)
    with caplog.at_level(logging.INFO, logger="overtone"):
        shutil.copy(directory / "two.pem", tmp_path / "one.pem")
        certificates.reload()
        assert "is unchanged" in caplog.messages[-1]
        shutil.copy(directory / "two.key", tmp_path / "one.key")
        certificates.reload()
        assert caplog.messages[-1] == f"TLS certificate: {tmp_path / 'one.pem'}"
