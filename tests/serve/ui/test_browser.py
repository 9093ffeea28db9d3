"""The page in a real browser, on a real engine."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from serve.api.generate.service import Service
from serve.api.loading import load_runtime
from serve.config import ApiSettings, ServerSettings
from serve.engine import EngineConfig
from serve.metrics import Metrics
from tests.serve.api.bundles import TOPICS, write_speaking_bundle
from tests.serve.api.fakes import live

pytest.importorskip("playwright", reason="playwright is missing: pip install -e '.[dev]'")

from tests.serve.ui.browser import CHROMIUM, Tab, chromium

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is missing: apt-get install chromium")

SETTINGS = ApiSettings(examples=(TOPICS["sql"], TOPICS["poetry"]))
TEMPLATE = "{{ messages | map(attribute='content') | join(' ') }}"
LAST = ".turn:last-child"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("speaker")
    bundle = write_speaking_bundle(folder / "bundle").bundle.path
    (folder / "template.jinja").write_text(TEMPLATE)
    settings = ServerSettings(
        bundle, engine=EngineConfig(kv_cache_bytes=2**24), chat_template=folder / "template.jinja"
    )
    metrics = Metrics()
    runtime = load_runtime(settings, metrics)
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
def browser(service: Service) -> Iterator[Tab]:
    # `service` is an argument so that it is closed later: it runs an event loop, and so does Playwright until its end.
    with chromium() as tab:
        yield tab


@pytest.fixture
def tab(browser: Tab, url: str) -> Tab:
    return opened(browser, url)


def opened(browser: Tab, url: str) -> Tab:
    """The page, ready, with what it asks of the server noted in `asked`."""
    browser.problems.clear()
    browser.look(1280, 900)
    browser.open(f"{url}/")
    browser.until("document.querySelector('#phase').dataset.phase === 'ready'")
    browser.until("document.querySelectorAll('#target option').length === 4")
    browser.run(
        """(() => {
            const real = window.fetch;
            window.asked = [];
            window.fetch = (path, options) => {
                if (options.body) asked.push([path, JSON.parse(options.body)]);
                return real(path, options);
            };
        })()"""
    )
    browser.run("document.querySelector('#tokens').value = 24")
    return browser


def say(tab: Tab, text: str) -> None:
    tab.run("document.querySelector('#prompt').focus()")
    tab.type(text)
    tab.press("Enter")


def ended(tab: Tab, turns: int = 1) -> None:
    tab.until(f"document.querySelectorAll('.turn').length === {turns} && !document.querySelector('.writing')")
    tab.until("document.querySelector('#stop').hidden && !document.querySelector('#send').hidden")


def last_request(tab: Tab) -> tuple[str, dict[str, Any]]:
    path, body = tab.run("asked.filter(([path]) => !path.includes('route')).at(-1)")
    return path, body


def test_a_chat_by_keyboard_alone(tab: Tab):
    assert tab.run("document.activeElement.id") == "prompt"
    tab.type(TOPICS["sql"])
    tab.until("document.querySelector('#verdict').innerText.includes('sql')")
    assert tab.run("document.querySelector('#scores li[data-chosen] .name').innerText") == "sql"
    tab.press("Enter")
    ended(tab)
    assert tab.run("document.querySelector('#prompt').value") == ""
    assert tab.run("document.activeElement.id") == "prompt"
    assert tab.text(f"{LAST} .asked") == TOPICS["sql"]
    assert tab.text(f"{LAST} .badge").startswith("sql")
    assert "% sure" in tab.text(f"{LAST} .badge")
    figures = tab.text(f"{LAST} .figures")
    assert figures.startswith("24 tokens")
    assert "first after" in figures
    assert "tokens/s" in figures
    assert figures.endswith("length")
    reply = tab.run(f"document.querySelector('{LAST} .text').textContent")
    assert reply

    say(tab, "and now shorter")
    ended(tab, turns=2)
    path, body = last_request(tab)
    assert path == "v1/chat/completions"
    assert [(message["role"], message["content"]) for message in body["messages"]] == [
        ("user", TOPICS["sql"]),
        ("assistant", reply),
        ("user", "and now shorter"),
    ]
    assert "stays with the chat" in tab.text(f"{LAST} .badge")
    assert tab.problems == []


def test_a_line_break_is_written_with_shift(tab: Tab):
    tab.type("one")
    tab.press("Shift+Enter")
    assert tab.run("document.querySelectorAll('.turn').length") == 0


def test_the_router_leaves_what_it_does_not_know_to_the_backbone(tab: Tab):
    tab.type("zzzzzzzz")
    tab.until("document.querySelector('#verdict').innerText.includes('the backbone alone')")
    assert tab.run("document.querySelectorAll('#scores li').length") == 2


def test_an_expert_can_be_forced_and_a_reply_tried_again_with_another(tab: Tab):
    tab.run("document.querySelector('#target').value = 'poetry'")
    say(tab, TOPICS["sql"])
    ended(tab)
    assert tab.text(f"{LAST} .badge") == "poetry"
    tab.run("document.querySelector('#target').value = 'backbone'")
    tab.run(f"document.querySelector('{LAST} .retry').click()")
    ended(tab)
    assert tab.text(f"{LAST} .badge") == "backbone"
    assert last_request(tab)[1]["messages"] == [{"role": "user", "content": TOPICS["sql"]}]


def test_only_the_last_reply_can_be_tried_again(tab: Tab):
    for turns in (1, 2):
        say(tab, "hello")
        ended(tab, turns)
    shown = tab.run("[...document.querySelectorAll('.retry')].map((button) => button.checkVisibility())")
    assert shown == [False, True]


def test_an_example_is_one_click_away_until_the_chat_begins(tab: Tab):
    tab.run("document.querySelectorAll('#examples button')[1].click()")
    ended(tab)
    assert tab.text(f"{LAST} .asked") == TOPICS["poetry"]
    assert tab.text(f"{LAST} .badge").startswith("poetry")
    assert tab.run("document.querySelector('#examples').hidden")
    tab.run("document.querySelector('#fresh').click()")
    assert tab.run("document.querySelectorAll('.turn').length") == 0
    assert not tab.run("document.querySelector('#examples').hidden")


def test_escape_stops_and_the_server_notices(tab: Tab, service: Service):
    tab.run("document.querySelector('#tokens').value = 200")
    tab.run(  # as soon as there is text: a reply takes less time than a key that is pressed from here
        """new MutationObserver(() => document.querySelector('.text')?.textContent
            && dispatchEvent(new KeyboardEvent('keydown', { key: 'Escape' }))
        ).observe(document.querySelector('#log'), { subtree: true, childList: true })"""
    )
    say(tab, TOPICS["sql"])
    ended(tab)
    assert tab.text(f"{LAST} .figures").endswith("stopped")
    assert service.runtime is not None
    while service.runtime.engine.stats().kv_blocks_used:
        tab.run("new Promise((done) => setTimeout(done, 20))")


def test_an_error_is_shown_as_the_server_says_it_and_left_out_of_the_chat(tab: Tab):
    tab.run("document.querySelector('#tokens').value = 99999")
    say(tab, "hello")
    ended(tab)
    assert "maximum context length is 256 tokens" in tab.text(f"{LAST} .error")
    tab.run("document.querySelector('#tokens').value = 4")
    say(tab, "hello again")
    ended(tab, turns=2)
    assert last_request(tab)[1]["messages"] == [{"role": "user", "content": "hello again"}]


def test_a_model_without_a_chat_template_completes_each_message_by_itself(browser: Tab, service: Service):
    assert service.runtime is not None
    plain = Service(service.metrics, replace(service.runtime, chat_template=None))
    with live(plain, SETTINGS) as url:
        tab = opened(browser, url)
        assert tab.run("document.querySelector('#note').hidden")
        for turns in (1, 2):
            say(tab, TOPICS["sql"])
            ended(tab, turns)
            path, body = last_request(tab)
            assert (path, body["prompt"]) == ("v1/completions", TOPICS["sql"])
            assert tab.text(f"{LAST} .badge").startswith("sql")
        assert not tab.run("document.querySelector('#note').hidden")
        chats = tab.run("asked.filter(([path]) => path.includes('chat')).length")
        assert chats == 1
        browser.open("about:blank?")


def test_a_model_that_is_not_to_be_asked_with_its_template_is_not(browser: Tab, service: Service):
    with live(service, replace(SETTINGS, ui_chat=False)) as url:
        tab = opened(browser, url)
        assert not tab.run("document.querySelector('#note').hidden")
        say(tab, TOPICS["poetry"])
        ended(tab)
        assert last_request(tab)[0] == "v1/completions"
        assert tab.problems == []
        browser.open("about:blank?")


def test_without_a_router_the_backbone_is_asked(browser: Tab, service: Service):
    assert service.runtime is not None
    unrouted = replace(service.runtime, router=None, catalogue=replace(service.runtime.catalogue, routed=False))
    with live(Service(service.metrics, unrouted), SETTINGS) as url:
        tab = opened(browser, url)
        assert tab.run("document.querySelector('#target').value") == "backbone"
        say(tab, "hello")
        ended(tab)
        assert tab.text(f"{LAST} .badge") == "backbone"
        browser.open("about:blank?")


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
    say(tab, "x" * 90)
    ended(tab)
    assert tab.problems == []
    tab.run("document.querySelector('#tokens').value = 99999")
    say(tab, TOPICS["sql"])
    ended(tab, turns=2)
    assert tab.text(f"{LAST} .error")
    assert tab.run("document.documentElement.scrollWidth") <= width
    assert tab.run(CONTRAST) == []


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
        say(browser, TOPICS["sql"])
        ended(browser)
        assert browser.text(f"{LAST} .badge").startswith("sql")
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
