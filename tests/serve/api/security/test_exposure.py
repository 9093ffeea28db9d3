import pytest

from serve.api.security.auth import KeyRing, open_to_others
from serve.config import ApiSettings

OPEN = KeyRing(ApiSettings())


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
def test_a_loopback_address_needs_no_key(address: str):
    assert open_to_others(address, OPEN, {}) is None


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.1.2.3", "fe80::1%eth0", None])
def test_other_addresses_do(address: str | None):
    assert open_to_others(address, KeyRing(ApiSettings(api_keys=("k",))), {}) is None
    warning = open_to_others(address, OPEN, {"OVERTONE_API_KEY": "k"})
    assert warning.startswith(f"{address} is not a loopback address" if address else "other machines may reach")
    assert "there is no API key: everyone" in warning


@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_key_is_named(value: str):
    assert "(OVERTONE_API_KEY is set, but empty)" in open_to_others("0.0.0.0", OPEN, {"OVERTONE_API_KEY": value})


def test_an_admin_key_closes_nothing():
    assert open_to_others("0.0.0.0", KeyRing(ApiSettings(admin_api_keys=("root",))), {}) is not None
