"""The happy paths, through OpenAI's own client."""

import httpx
import pytest
from openai import OpenAI

from tests.serve.api.fakes import EOS, FakeEngine, says


@pytest.mark.promise(number=16)
def test_a_plain_completion(openai: OpenAI, engine: FakeEngine):
    reply = openai.completions.create(model="sql", prompt="hi", max_tokens=3)
    assert reply.id.startswith("cmpl-")
    assert reply.object == "text_completion"
    assert reply.model == "sql"
    assert reply.system_fingerprint.startswith("fp_")
    (choice,) = reply.choices
    assert (choice.index, choice.text, choice.finish_reason, choice.logprobs) == (0, "hel", "length", None)
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (2, 3, 5)
    assert engine.requests[0].prompt == tuple(b"hi")


def test_a_streamed_completion_is_the_plain_one_in_pieces(openai: OpenAI, engine: FakeEngine):
    engine.model = says("héllo 😀")
    plain = openai.completions.create(model="sql", prompt="hi")
    chunks = list(openai.completions.create(model="sql", prompt="hi", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == plain.choices[0].text == "héllo 😀"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert all(chunk.usage is None for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1


def test_events_as_they_are_on_the_wire(http: httpx.Client):
    reply = http.post("/v1/completions", json={"model": "sql", "prompt": "hi", "max_tokens": 1, "stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    first, done, rest = reply.text.split("\n\n")
    assert first.startswith('data: {"id":"cmpl-')
    assert (done, rest) == ("data: [DONE]", "")


def test_usage_in_streams(openai: OpenAI):
    options = {"include_usage": True}
    *chunks, last = openai.completions.create(model="sql", prompt="hi", stream=True, stream_options=options)
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (2, 6)
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, _ = list(openai.completions.create(model="sql", prompt="hi", stream=True, stream_options=options))
    assert [chunk.usage.completion_tokens for chunk in chunks] == [1, 2, 3, 4, 5, 6]
    options = {"continuous_usage_stats": True}  # of the usage, which nobody asked for
    chunks = list(openai.completions.create(model="sql", prompt="hi", stream=True, stream_options=options))
    assert all(chunk.usage is None for chunk in chunks)


def test_continuations_of_a_prompt_count_it_once_and_words_are_distinct(openai: OpenAI, engine: FakeEngine):
    words = {"bad_words": ["no", "no", "never"]}
    openai.completions.create(model="sql", prompt=["hi", "ho"], n=3, seed=5, extra_body=words)
    requests = sorted(engine.requests[-6:], key=lambda request: request.request_id)
    assert [request.prompt_counts for request in requests] == [True, False, False] * 2
    assert [request.params.seed for request in requests] == [5, 6, 7] * 2
    assert {len(request.params.bad_words) for request in requests} == {4}


def test_cached_tokens_are_reported(openai: OpenAI, engine: FakeEngine):
    engine.cached_tokens = 2
    reply = openai.completions.create(model="sql", prompt=["hi", "ho"], n=2)
    assert reply.usage.prompt_tokens == 4
    assert reply.usage.prompt_tokens_details.cached_tokens == 4


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", [b"ab"]),
        (["ab", "c"], [b"ab", b"c"]),
        ([97, 98], [b"ab"]),
        ([[97, 98], [99]], [b"ab", b"c"]),
    ],
)
def test_the_four_shapes_of_a_prompt(openai: OpenAI, engine: FakeEngine, prompt, expected):
    reply = openai.completions.create(model="backbone", prompt=prompt)
    assert sorted(request.prompt for request in engine.requests) == sorted(map(tuple, expected))
    assert [choice.index for choice in reply.choices] == list(range(len(expected)))


def test_choices_are_in_order_prompt_by_prompt(openai: OpenAI, engine: FakeEngine):
    engine.model = lambda request: [*request.prompt, ord("+"), EOS]
    reply = openai.completions.create(model="backbone", prompt=["ab", "c"], n=2)
    assert [choice.text for choice in reply.choices] == ["ab+", "ab+", "c+", "c+"]
    assert reply.usage.prompt_tokens == 3
    assert reply.usage.completion_tokens == 4 + 4 + 3 + 3


def test_copies_of_a_seeded_request_differ_in_seed(openai: OpenAI, engine: FakeEngine):
    openai.completions.create(model="backbone", prompt="ab", n=3, seed=7)
    assert sorted(request.params.seed for request in engine.requests) == [7, 8, 9]


def test_choices_stream_with_their_index(openai: OpenAI, engine: FakeEngine):
    engine.model = lambda request: [*request.prompt, EOS]
    texts = ["", ""]
    for chunk in openai.completions.create(model="backbone", prompt=["abc", "de"], stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["abc", "de"]


def test_the_router_decides_under_the_bundles_name_and_auto(openai: OpenAI, engine: FakeEngine):
    for model in ("tiny", "auto"):
        raw = openai.completions.with_raw_response.create(model=model, prompt="please write sql")
        assert raw.headers["x-overtone-expert"] == "sql"
        assert raw.headers["x-overtone-confidence"] == "0.9000"
        assert raw.parse().model == "sql"
    assert [request.experts for request in engine.requests] == [(("sql", 1.0),)] * 2


def test_an_unsure_router_leaves_it_to_the_backbone(openai: OpenAI, engine: FakeEngine):
    raw = openai.completions.with_raw_response.create(model="auto", prompt="hm")
    assert (raw.headers["x-overtone-expert"], raw.headers["x-overtone-confidence"]) == ("backbone", "0.6000")
    assert raw.parse().model == "backbone"
    assert engine.requests[0].experts == ()


@pytest.mark.parametrize(("model", "experts"), [("poetry", (("poetry", 1.0),)), ("backbone", ())])
def test_a_named_model_is_not_routed(openai: OpenAI, engine: FakeEngine, model, experts):
    raw = openai.completions.with_raw_response.create(model=model, prompt="please write sql")
    assert raw.headers["x-overtone-expert"] == raw.parse().model == model
    assert "x-overtone-confidence" not in raw.headers
    assert engine.requests[0].experts == experts


def test_token_prompts_are_routed_by_their_text(openai: OpenAI):
    assert openai.completions.create(model="auto", prompt=list(b"some poetry")).model == "poetry"


def test_a_mix(openai: OpenAI, engine: FakeEngine):
    mix = {"sql": 0.7, "poetry": 0.3}
    reply = openai.completions.create(model="auto", prompt="hi", extra_body={"experts": mix})
    assert reply.model == "sql+poetry"
    assert engine.requests[0].experts == (("sql", 0.7), ("poetry", 0.3))


def test_each_prompt_is_routed_on_its_own(http: httpx.Client, engine: FakeEngine):
    body = {"model": "auto", "prompt": ["some sql", "hm", "a poetry", "more sql"]}
    reply = http.post("/v1/completions", json=body)
    assert [choice["expert"] for choice in reply.json()["choices"]] == ["sql", "backbone", "poetry", "sql"]
    assert [choice["confidence"] for choice in reply.json()["choices"]] == [0.9, 0.6, 0.9, 0.9]
    assert reply.headers["x-overtone-expert"] == reply.json()["model"] == "sql,backbone,poetry"
    assert reply.headers["x-overtone-confidence"] == "0.6000"
    events = http.post("/v1/completions", json={**body, "stream": True, "max_tokens": 1}).text
    assert '"model":"poetry"' in events
    assert '"model":"backbone"' in events


def test_the_fingerprint_names_the_weights(openai: OpenAI):
    def fingerprint(**fields):
        return openai.completions.create(prompt="hi", **fields).system_fingerprint

    assert fingerprint(model="sql") == fingerprint(model="sql")
    mix = {"extra_body": {"experts": {"sql": 0.5}}}
    assert len({fingerprint(model="sql"), fingerprint(model="backbone"), fingerprint(model="auto", **mix)}) == 3


def test_logprobs(openai: OpenAI):
    logprobs = openai.completions.create(model="sql", prompt="hi", max_tokens=2, logprobs=1).choices[0].logprobs
    assert logprobs.tokens == ["h", "e"]
    assert logprobs.token_logprobs == [-0.5, -0.5]
    assert logprobs.top_logprobs == [{"h": -0.5}, {"e": -0.5}]
    assert logprobs.text_offset == [0, 1]


def test_scoring_a_prompt_with_echo(openai: OpenAI, engine: FakeEngine):
    reply = openai.completions.create(model="sql", prompt="abc", max_tokens=0, echo=True, logprobs=0)
    (choice,) = reply.choices
    assert (choice.text, choice.finish_reason) == ("abc", "length")
    assert choice.logprobs.token_logprobs == [None, -0.25, -0.25]
    assert choice.logprobs.text_offset == [0, 1, 2]
    assert engine.requests[0].params.prompt_logprobs == 0


def test_the_best_of_several_are_returned_by_mean_logprob(openai: OpenAI, engine: FakeEngine):
    engine.model = lambda request: [ord("a") + request.params.seed, EOS]
    engine.logprob = lambda request, token: -abs(request.params.seed - 2.2)
    reply = openai.completions.create(model="sql", prompt=["x", "y"], n=2, best_of=5, seed=0)
    assert [choice.text for choice in reply.choices] == ["c", "d", "c", "d"]
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert reply.usage.completion_tokens == 20
    assert reply.choices[0].logprobs is None


@pytest.mark.parametrize("fields", [{"n": 3, "best_of": 2}, {"best_of": 2, "stream": True}])
def test_best_of_what_cannot_be(http: httpx.Client, fields):
    reply = http.post("/v1/completions", json={"model": "sql", "prompt": "a", **fields})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "best_of")


def test_a_stop_string_ends_the_engines_work(openai: OpenAI, engine: FakeEngine):
    engine.model = lambda request: list(b"one STOP" + b"x" * 300)
    engine.delay = 0.001
    reply = openai.completions.create(model="sql", prompt="hi", max_tokens=300, stop=" STOP")
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == ("one", "stop")
    assert reply.choices[0].stop_reason == " STOP"
    assert engine.aborted == [engine.requests[0].request_id]


def test_one_choice_that_stops_leaves_the_others_running(openai: OpenAI, engine: FakeEngine):
    engine.model = lambda request: [*request.prompt, *b"abcdef"]
    reply = openai.completions.create(model="sql", prompt=["x", "."], stop=".", max_tokens=5)
    assert [(choice.text, choice.finish_reason) for choice in reply.choices] == [("xabcd", "length"), ("", "stop")]


def test_the_default_length_fits_what_the_context_leaves(openai: OpenAI, engine: FakeEngine):
    openai.completions.create(model="sql", prompt="x" * 508)
    openai.completions.create(model="sql", prompt="x")
    assert [request.params.max_tokens for request in engine.requests] == [4, 16]


def test_long_prompts_are_prepared_off_the_event_loop_with_the_same_result(openai: OpenAI, engine: FakeEngine):
    prompts = ["sql " * 100] * 50
    reply = openai.completions.create(model="auto", prompt=prompts, max_tokens=1)
    assert len(reply.choices) == len(engine.requests) == 50
    assert {choice.expert for choice in reply.choices} == {"sql"}


def test_request_ids(http: httpx.Client, openai: OpenAI):
    reply = http.post("/v1/completions", json={"model": "sql", "prompt": "a", "request_id": "mine"})
    assert (reply.headers["x-request-id"], reply.json()["id"]) == ("mine", "cmpl-mine")
    reply = http.post("/v1/completions", json={"model": "sql", "prompt": "a"}, headers={"X-Request-Id": "its"})
    assert (reply.headers["x-request-id"], reply.json()["id"]) == ("its", "cmpl-its")
    given = "not one of ours: " + "x" * 200
    assert http.get("/health", headers={"X-Request-Id": given}).headers["x-request-id"] != given


def test_two_clients_may_use_one_request_id(http: httpx.Client, engine: FakeEngine):
    for _ in range(2):
        http.post("/v1/completions", json={"model": "sql", "prompt": "a", "request_id": "same"})
    assert len({request.request_id for request in engine.requests}) == 2


def test_user_goes_to_the_access_log(http: httpx.Client, caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO", logger="overtone.access"):
        http.post("/v1/completions", json={"model": "sql", "prompt": "secret", "user": "ann\nb", "request_id": "r1"})
        http.get("/health")  # answered after the line above was written
    assert "r1 POST /v1/completions 200" in caplog.text
    assert "expert=sql user='ann\\nb'" in caplog.text
    assert "secret" not in caplog.text
