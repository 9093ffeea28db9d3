"""The page as a file and as a response."""

import json
import re
from pathlib import Path

import httpx
import pytest

from serve.api.generate.service import Service
from serve.config import ApiSettings
from serve.ui.page import _TEMPLATE, _page
from tests.serve.api.fakes import FakeEngine, fake_service, live

HTML = _TEMPLATE.read_text()


@pytest.fixture
def service() -> Service:
    return fake_service(FakeEngine())


def test_the_page_needs_no_key_and_may_only_talk_to_its_server(service: Service):
    with live(service, ApiSettings(api_keys=("secret",))) as url:
        reply = httpx.get(f"{url}/")
        assert httpx.get(f"{url}/v1/models").status_code == 401
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
    assert "secret" not in reply.text


def test_it_can_be_turned_off(service: Service):
    with live(service, ApiSettings(ui=False)) as url:
        assert httpx.get(f"{url}/").status_code == 404


def test_it_asks_nobody_else_for_anything():
    assert not re.findall(r"(?:src|href)=\"(?!data:)", HTML)
    outside = set(re.findall(r"https?://[^'\" )]+", HTML)) - {"http://www.w3.org/2000/svg"}
    assert not outside
    assert "@import" not in HTML


def test_it_is_small():
    assert Path(_TEMPLATE).stat().st_size < 40_000


def test_examples_cannot_end_their_element():
    example = '</script><script>alert(1)</script> & "quotes"'
    page = _page([example])
    (settings,) = re.findall(r'<script type="application/json" id="settings">(.*?)</script>', page)
    assert json.loads(settings) == {"examples": [example], "chat": True}
    assert page.count("<script") == HTML.count("<script")
