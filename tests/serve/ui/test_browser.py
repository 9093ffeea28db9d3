"""The page in a real browser, on a real engine."""

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from serve.api.loading import load_runtime
from serve.api.service import Service
from serve.config import ApiSettings, ServerSettings
from serve.engine import EngineConfig
from serve.metrics import Metrics
from tests.serve.api.bundles import TOPICS, write_speaking_bundle
from tests.serve.api.fakes import live
from tests.serve.ui.browser import CHROMIUM, Tab, chromium

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is missing: apt-get install chromium")

SETTINGS = ApiSettings(examples=(TOPICS["sql"], TOPICS["poetry"]))
CTRL = 2


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    bundle = write_speaking_bundle(tmp_path_factory.mktemp("speaker") / "bundle").bundle.path
    metrics = Metrics()
    runtime = load_runtime(ServerSettings(bundle, engine=EngineConfig(kv_cache_bytes=2**24)), metrics)
    runtime.engine.start()
    try:
        yield Service(metrics, runtime)
    finally:
        asyncio.run(runtime.engine.shutdown(0))


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    with live(service, SETTINGS) as url:
        yield url


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with chromium(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def tab(browser: Tab, url: str) -> Tab:
    browser.problems.clear()
    browser.look(1280, 900)
    browser.open(f"{url}/")
    browser.until("document.querySelector('#phase').dataset.phase === 'ready'")
    browser.until("document.querySelectorAll('#target option').length === 4")
    return browser


def ended(tab: Tab) -> None:
    tab.until("document.querySelector('#stop').hidden && document.querySelector('#count').innerText.includes('·')")


def test_a_prompt_by_keyboard_alone(tab: Tab):
    tab.run("document.querySelector('#tokens').value = 24")
    assert tab.run("document.activeElement.id") == "prompt"
    tab.type(TOPICS["sql"])
    tab.until("document.querySelector('#verdict').innerText.includes('sql')")
    assert tab.run("document.querySelector('#scores li[data-chosen] .name').innerText") == "sql"
    tab.press("Enter", CTRL)
    ended(tab)
    assert tab.text("#expert").startswith("sql")
    assert "% sure" in tab.text("#expert")
    assert tab.run("document.querySelector('#answer').textContent.length") > 0
    assert tab.run("document.querySelectorAll('#strip i').length") > 1
    assert tab.text("#count").startswith("24")
    assert "s" in tab.text("#ttft")
    assert "tokens/s" in tab.text("#speed")
    assert tab.problems == []


def test_the_router_leaves_what_it_does_not_know_to_the_backbone(tab: Tab):
    tab.type("zzzzzzzz")
    tab.until("document.querySelector('#verdict').innerText.includes('the backbone alone')")
    assert tab.run("document.querySelectorAll('#scores li').length") == 2


def test_an_expert_can_be_forced(tab: Tab):
    tab.run("document.querySelector('#target').value = 'poetry'")
    tab.type(TOPICS["sql"])
    tab.press("Enter", CTRL)
    ended(tab)
    assert tab.text("#expert") == "poetry"


def test_an_example_is_one_click_away(tab: Tab):
    tab.run("document.querySelectorAll('#examples button')[1].click()")
    ended(tab)
    assert tab.run("document.querySelector('#prompt').value") == TOPICS["poetry"]
    assert tab.text("#expert").startswith("poetry")


def test_escape_stops_and_the_server_notices(tab: Tab, service: Service):
    tab.run("document.querySelector('#tokens').value = 200")
    tab.type("hello")
    tab.press("Enter", CTRL)
    tab.until("document.querySelector('#strip').children.length > 0")
    tab.press("Escape")
    ended(tab)
    tab.until("document.querySelector('#send').hidden === false")
    assert service.runtime is not None
    while service.runtime.engine.stats().kv_blocks_used:
        tab.run("new Promise((done) => setTimeout(done, 20))")


def test_an_error_is_shown_as_the_server_says_it(tab: Tab):
    tab.run("document.querySelector('#tokens').value = 99999")
    tab.type("hello")
    tab.press("Enter", CTRL)
    tab.until("!document.querySelector('#error').hidden")
    assert "maximum context length is 256 tokens" in tab.text("#error")


def test_the_charts_follow_the_server(tab: Tab, url: str):
    with httpx.Client(base_url=url, timeout=60) as http:
        for model in ("sql", "poetry"):
            body = {"model": model, "prompt": "x", "max_tokens": 30, "ignore_eos": True}
            assert http.post("/v1/completions", json=body).status_code == 200
    tab.until("document.querySelector('#rate-top').innerText.startsWith('most ')")
    tab.until("document.querySelector('#first-chart .line') !== null")
    names = tab.run("[...document.querySelectorAll('#popular .name')].map((name) => name.textContent)")
    assert {"sql", "poetry"} <= set(names)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (375, "light")])
def test_nothing_sticks_out_and_text_can_be_read(tab: Tab, width: int, scheme: str):
    tab.look(width, 900, scheme)
    assert tab.run("document.documentElement.scrollWidth") <= width
    assert tab.run(CONTRAST) == []
    assert tab.problems == []


def test_the_theme_is_kept(tab: Tab):
    tab.run("document.querySelector('#theme').click()")
    assert tab.run("document.documentElement.dataset.theme") == "dark"
    tab.open(tab.run("location.href"))
    assert tab.run("getComputedStyle(document.documentElement).colorScheme") == "dark"
    tab.run("localStorage.clear()")


def test_every_control_has_a_name(tab: Tab):
    nameless = """[...document.querySelectorAll('button, select, input, textarea')].filter((e) =>
        !(e.getAttribute('aria-label') || e.labels?.length || e.innerText.trim())).map((e) => e.outerHTML)"""
    assert [html for html in tab.run(nameless) if 'id="stop"' not in html and "go" not in html] == []


def test_a_server_with_keys_is_asked_with_one(browser: Tab, service: Service):
    with live(service, ApiSettings(api_keys=("secret",))) as url:
        browser.open(f"{url}/")
        browser.until("document.querySelector('#ask').open")
        browser.type("secret")
        browser.press("Enter")
        browser.until("document.querySelectorAll('#target option').length === 4")
        browser.run("document.querySelector('#prompt').focus()")
        browser.type(TOPICS["sql"])
        browser.press("Enter", CTRL)
        ended(browser)
        assert browser.text("#expert").startswith("sql")
        browser.open("about:blank?")


CONTRAST = """(() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = parts(colour).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if ((parts(colour)[3] ?? 1) > 0.99) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  return [...document.querySelectorAll('body *')].filter((e) => e.checkVisibility() &&
    [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())).map((e) => {
      const [a, b] = [light(getComputedStyle(e).color), light(ground(e))];
      return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.textContent.slice(0, 30)];
    }).filter(([ratio]) => ratio < 4.5);
})()"""
