"""Every way to fail, in OpenAI's words."""

import httpx
import openai as openai_package
import pytest
from openai import OpenAI

from serve.api.errors import did_you_mean, model_not_found, shortened
from serve.config import ApiSettings
from serve.engine import (
    Draining,
    EngineDead,
    ExpertUnavailable,
    InvalidRequest,
    PromptTooLong,
    QueueFull,
    UnknownExpert,
)
from serve.experts import ExpertLoadError, LoadFailure
from tests.serve.api.fakes import MAX_MODEL_LEN, FakeEngine, fake_service, live

BODY = {"model": "sql", "prompt": "hi"}


def error_of(reply: httpx.Response, status: int) -> dict[str, str | None]:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"]
    error = reply.json()["error"]
    assert set(reply.json()) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    return error


@pytest.mark.promise(number=2)
def test_an_unknown_model_is_404_and_says_what_there_is(openai: OpenAI, engine: FakeEngine):
    with pytest.raises(openai_package.NotFoundError) as error:
        openai.completions.create(model="sq", prompt="hi")
    assert (error.value.code, error.value.param) == ("model_not_found", "model")
    assert "did you mean 'sql'?" in str(error.value)
    assert "tiny, auto, backbone, sql, poetry" in str(error.value)
    assert engine.requests == []


def test_an_unknown_expert_of_a_mix_is_404(http: httpx.Client):
    reply = http.post("/v1/completions", json={"model": "auto", "prompt": "hi", "experts": {"sql": 1, "prosa": 1}})
    assert error_of(reply, 404)["param"] == "experts.prosa"


def test_the_list_of_what_there_is_stays_short():
    error = model_not_found("x" * 500, tuple(f"expert-{number}" for number in range(1000)))
    assert "and 980 more" in error.message
    assert len(error.message) < 500


def test_context_overflow(openai: OpenAI, engine: FakeEngine):
    for fields in ({"prompt": "x" * 600}, {"prompt": "x" * 500, "max_tokens": 13}):
        with pytest.raises(openai_package.BadRequestError, match=str(MAX_MODEL_LEN)) as error:
            openai.completions.create(model="sql", **fields)
        assert (error.value.code, error.value.param) == ("context_length_exceeded", "prompt")
    with pytest.raises(openai_package.BadRequestError, match="prompt 1 has 600"):
        openai.completions.create(model="sql", prompt=["hi", "x" * 600])
    with pytest.raises(openai_package.BadRequestError, match="min_tokens"):
        openai.completions.create(model="sql", prompt="x" * 510, extra_body={"min_tokens": 5})
    assert engine.requests == []


def test_context_overflow_is_told_in_the_words_that_clients_know(http: httpx.Client):
    """LiteLLM knows an overflow by the first sentence, and then asks a model of a longer context."""
    for fields, requested in (
        ({"prompt": "x" * 500, "max_tokens": 13}, "you requested 513 tokens: the prompt has 500, the completion 13"),
        ({"prompt": "x" * 90_000}, "your prompt of 90000 characters has more tokens than that"),
    ):
        error = error_of(http.post("/v1/completions", json={**BODY, **fields}), 400)
        assert error["message"].startswith(
            f"This model's maximum context length is {MAX_MODEL_LEN} tokens. However, {requested}. Please reduce"
        )
        assert "context_length_exceeded" in error["message"]  # LangChain's sign


@pytest.mark.parametrize(
    ("refusal", "status", "code"),
    [
        (QueueFull("12 requests wait"), 429, "queue_full"),
        (Draining("shutting down"), 503, "draining"),
        (EngineDead("boom"), 503, "engine_dead"),
        (ExpertUnavailable("expert 'sql' cannot be served: its file is damaged"), 503, "expert_unavailable"),
        (UnknownExpert("no expert 'sql'"), 404, "model_not_found"),
        (PromptTooLong("too long"), 400, "context_length_exceeded"),
        (InvalidRequest("experts mixes 5; at most 2"), 400, "invalid_value"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_engine_refuses(http: httpx.Client, engine: FakeEngine, refusal, status, code, stream):
    engine.refusal = refusal
    reply = http.post("/v1/completions", json={**BODY, "stream": stream})
    assert error_of(reply, status)["code"] == code
    assert ("retry-after" in reply.headers) == (status in {429, 503})


def test_a_refusal_of_the_engine_names_the_field(http: httpx.Client, engine: FakeEngine):
    engine.refusal = InvalidRequest("there are 5; at most 2", "experts")
    assert error_of(http.post("/v1/completions", json=BODY), 400)["param"] == "experts"


def test_overload_is_a_rate_limit_to_the_client(openai: OpenAI, engine: FakeEngine):
    engine.refusal = QueueFull("full")
    with pytest.raises(openai_package.RateLimitError):
        openai.completions.create(model="sql", prompt="hi")


def test_choices_are_admitted_all_or_none(http: httpx.Client, engine: FakeEngine):
    engine.refusal, engine.refuse_after, engine.delay = QueueFull("full"), 2, 0.01
    error_of(http.post("/v1/completions", json={**BODY, "n": 3}), 429)
    assert len(engine.aborted) == 2
    assert engine.running == set()


def test_an_error_in_the_middle_of_a_plain_reply(http: httpx.Client, engine: FakeEngine):
    engine.output_error = "expert sql failed to load"
    assert error_of(http.post("/v1/completions", json=BODY), 500)["message"] == "expert sql failed to load"


def test_an_error_in_the_middle_of_a_stream_is_its_last_event(openai: OpenAI, http: httpx.Client, engine: FakeEngine):
    engine.output_error = "expert sql failed to load"
    with pytest.raises(openai_package.APIError, match="expert sql failed to load"):
        list(openai.completions.create(model="sql", prompt="hi", stream=True))
    events = http.post("/v1/completions", json={**BODY, "stream": True}).text.split("\n\n")
    assert events[-3].startswith('data: {"error":{"message":"expert sql failed to load"')
    assert events[-2:] == ["data: [DONE]", ""]


@pytest.mark.parametrize(("reason", "retry_after"), [("damaged", "1"), ("missing", "1"), ("misfit", None)])
def test_an_expert_that_cannot_be_loaded_is_503_without_paths(
    http: httpx.Client, engine: FakeEngine, reason: LoadFailure, retry_after: str | None
):
    engine.expert_error = ExpertLoadError("expert 'sql' cannot be served: /srv/sql.safetensors: bad", "sql", reason)
    reply = http.post("/v1/completions", json={**BODY, "n": 2})
    error = error_of(reply, 503)
    assert (error["code"], error["param"], error["type"]) == ("expert_unavailable", "model", "service_unavailable")
    assert error["message"].startswith("expert 'sql' cannot be served: ")
    assert "/srv" not in reply.text
    assert reply.headers.get("retry-after") == retry_after
    assert engine.running == set()
    events = http.post("/v1/completions", json={**BODY, "stream": True}).text.split("\n\n")
    assert '"code":"expert_unavailable"' in events[-3]
    assert events[-2:] == ["data: [DONE]", ""]


def test_one_choice_that_fails_ends_the_others(http: httpx.Client, engine: FakeEngine):
    engine.output_error, engine.delay = "broken", 0.01
    error_of(http.post("/v1/completions", json={**BODY, "n": 3}), 500)
    assert engine.running == set()


def test_the_engine_dying_in_the_middle(http: httpx.Client, engine: FakeEngine):
    def dies(request):
        engine.dead = "CUDA error"
        return [1, 2]

    engine.model = dies
    assert error_of(http.post("/v1/completions", json=BODY), 503)["code"] == "engine_dead"
    health = http.get("/health")
    assert "CUDA error" in error_of(health, 503)["message"]
    assert error_of(http.get("/ready"), 503)["code"] == "engine_dead"
    assert error_of(http.post("/v1/completions", json=BODY), 503)["code"] == "engine_dead"
    assert http.get("/v1/models").status_code == 200


def test_a_fault_of_ours_is_500_without_its_details(http: httpx.Client, engine: FakeEngine, caplog):
    def broken(request):
        raise KeyError("secret detail")

    engine.model = broken
    error = error_of(http.post("/v1/completions", json={**BODY, "request_id": "r7"}), 500)
    assert "r7" in error["message"]
    assert "secret" not in error["message"]
    assert "secret detail" in caplog.text
    engine.reset()
    assert http.post("/v1/completions", json=BODY).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "hint"),
    [
        ("GET", "/nope", 404, "there is no /nope"),
        ("POST", "/v1/chat/completion", 404, "did you mean '/v1/chat/completions'?"),
        ("POST", "/v1/completion", 404, "did you mean '/v1/completions'?"),
        ("POST", "/v1/completions//", 404, "did you mean '/v1/completions'?"),
        ("GET", "/docs", 404, "there is no /docs"),
        ("GET", "/v1/completions", 405, "it takes POST"),
        ("DELETE", "/health", 405, "it takes GET"),
    ],
)
def test_the_frameworks_own_errors(http: httpx.Client, method, path, status, hint):
    reply = http.request(method, path)
    assert hint in error_of(reply, status)["message"]
    assert ("allow" in reply.headers) == (status == 405)


def test_a_body_too_long_is_413():
    with (
        live(fake_service(FakeEngine()), ApiSettings(max_body_bytes=100)) as url,
        httpx.Client(base_url=url) as client,
    ):
        assert (
            error_of(client.post("/v1/completions", json={**BODY, "user": "x" * 100}), 413)["code"] == "body_too_large"
        )
        assert client.post("/v1/completions", json=BODY).status_code == 200


def test_did_you_mean():
    assert did_you_mean("max_token", ["max_tokens", "n"]) == " (did you mean 'max_tokens'?)"
    assert did_you_mean("zzz", ["max_tokens", "n"]) == ""


def test_shortened():
    assert shortened("abc", 3) == "abc"
    assert shortened("abcd", 3) == "ab…"
