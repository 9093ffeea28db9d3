"""Certificates for tests."""

import shutil
import subprocess
from pathlib import Path

import pytest


def self_signed(directory: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate with")
    certificate, key = directory / "cert.pem", directory / "key.pem"
    asked = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1"
    asked += " -addext subjectAltName=IP:127.0.0.1"
    files = ("-keyout", str(key), "-out", str(certificate))
    subprocess.run([openssl, *asked.split(), *files], check=True, capture_output=True)
    return certificate, key
