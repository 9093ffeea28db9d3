"""HTTP to weights and back, on the real engine."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai as openai_package
import pytest
import torch
from openai import OpenAI

from serve.api.generate.service import Service
from serve.api.loading import load_runtime
from serve.config import ServerSettings
from serve.engine import EngineConfig, EngineStats
from serve.metrics import Metrics
from tests.conftest import REPLICAS
from tests.serve.api.bundles import MAX_MODEL_LEN
from tests.serve.api.fakes import byte_text, live
from tests.serve.cluster.deployed import samples, scraped_service
from tests.serve.conftest import TinyBundle

SQL = "SELECT city FROM table WHERE age = 1"
POEM = "O sweet sea, softer than moonlight"
GREEDY = {"temperature": 0, "extra_body": {"ignore_eos": True}}


@contextlib.contextmanager
def serving(speaker: TinyBundle, **engine) -> Iterator[tuple[Service, str]]:
    metrics = Metrics()
    settings = ServerSettings(speaker.bundle.path, engine=EngineConfig(kv_cache_bytes=2**24, **engine))
    runtime = load_runtime(settings, metrics)
    runtime.engine.start()
    service = Service(metrics, runtime)
    try:
        with live(service) as url:
            yield service, url
    finally:
        asyncio.run(runtime.engine.shutdown(0))


@pytest.fixture(scope="module", params=["one process", REPLICAS])
def served(request: pytest.FixtureRequest, speaker: TinyBundle) -> Iterator[tuple[Service, str]]:
    """The bundle served in this process, and on two engine replicas under Ray Serve."""
    if request.param == "one process":
        with serving(speaker) as pair:
            yield pair
    else:
        deployment = request.getfixturevalue("deployment")
        yield scraped_service(deployment.url), deployment.url


@pytest.fixture
def replicas(served, request: pytest.FixtureRequest) -> int:
    return 1 if isinstance(served[0], Service) else 2


@pytest.fixture(scope="module")
def client(served) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{served[1]}/v1", api_key="unused", max_retries=0, timeout=60) as openai:
        yield openai


def expected(speaker: TinyBundle, prompt: str, tokens: int, *experts: tuple[str, float]) -> str:
    """What transformers says with the experts added into its weights."""
    return byte_text(speaker.greedy(prompt.encode(), tokens, *experts))


def idle(service: Service) -> EngineStats:
    deadline = time.monotonic() + 20
    while True:
        stats = service.runtime.engine.stats()
        if not (stats.running or stats.waiting or stats.kv_blocks_used):
            return stats
        assert time.monotonic() < deadline, stats
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("model", "prompt", "ran", "experts"),
    [
        ("auto", SQL, "sql", (("sql", 1.0),)),
        ("speaker", POEM, "poetry", (("poetry", 1.0),)),
        ("auto", "hello", "backbone", ()),
        ("sql", POEM, "sql", (("sql", 1.0),)),
        ("backbone", SQL, "backbone", ()),
    ],
)
def test_what_ran_is_what_was_said(speaker, client: OpenAI, model, prompt, ran, experts):
    raw = client.completions.with_raw_response.create(model=model, prompt=prompt, max_tokens=12, **GREEDY)
    reply = raw.parse()
    assert (reply.model, raw.headers["x-overtone-expert"]) == (ran, ran)
    assert reply.choices[0].text == expected(speaker, prompt, 12, *experts)
    assert reply.usage.completion_tokens == 12


def test_the_experts_and_the_backbone_differ(speaker):
    texts = {expected(speaker, SQL, 12, *experts) for experts in ((), (("sql", 1.0),), (("poetry", 1.0),))}
    assert len(texts) == 3


def test_a_mix(speaker, client: OpenAI):
    mix = {"sql": 0.7, "poetry": 0.3}
    fields = {**GREEDY, "extra_body": {"ignore_eos": True, "experts": mix}}
    reply = client.completions.create(model="auto", prompt="hello", max_tokens=12, **fields)
    assert reply.choices[0].text == expected(speaker, "hello", 12, *mix.items())


def test_streams_say_the_same(speaker, client: OpenAI):
    chunks = client.completions.create(model="auto", prompt=SQL, max_tokens=40, stream=True, **GREEDY)
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected(speaker, SQL, 40, ("sql", 1.0))


@pytest.mark.promise(number=1)
def test_many_at_once_say_what_each_says_alone(speaker, client: OpenAI):
    targets = [("sql", (("sql", 1.0),)), ("poetry", (("poetry", 1.0),)), ("backbone", ())]
    asked = [(*targets[number % 3], f"number {number} is") for number in range(24)]

    def ask(item) -> str:
        return client.completions.create(model=item[0], prompt=item[2], max_tokens=10, **GREEDY).choices[0].text

    with ThreadPoolExecutor(12) as pool:
        texts = list(pool.map(ask, asked))
    assert texts == [expected(speaker, prompt, 10, *experts) for _, experts, prompt in asked]


def test_several_prompts_in_one_request(speaker, client: OpenAI):
    reply = client.completions.create(model="auto", prompt=[SQL, POEM, "hello"], max_tokens=8, n=2, **GREEDY)
    one, two, three = (
        expected(speaker, SQL, 8, ("sql", 1.0)),
        expected(speaker, POEM, 8, ("poetry", 1.0)),
        expected(speaker, "hello", 8),
    )
    assert [choice.text for choice in reply.choices] == [one, one, two, two, three, three]
    assert [choice.expert for choice in reply.choices[::2]] == ["sql", "poetry", "backbone"]


def test_the_log_probabilities_of_an_echoed_prompt(speaker, client: OpenAI):
    reply = client.completions.create(model="sql", prompt=SQL, max_tokens=1, echo=True, logprobs=1, **GREEDY)
    tokens = torch.tensor([list(SQL.encode())])
    with torch.inference_mode():
        scores = speaker.dense(("sql", 1.0))(tokens).logits[0].log_softmax(-1)
    wanted = scores[:-1].gather(1, tokens[0, 1:, None])[:, 0]
    found = reply.choices[0].logprobs
    assert found.token_logprobs[0] is None
    torch.testing.assert_close(torch.tensor(found.token_logprobs[1:-1]), wanted, atol=1e-3, rtol=1e-3)
    assert found.token_logprobs[-1] == pytest.approx(float(scores[-1].max()), abs=1e-3)
    assert "".join(found.tokens[: len(SQL)]) == SQL


def test_a_seed_repeats_and_copies_differ(client: OpenAI):
    fields = {"model": "sql", "prompt": "x", "max_tokens": 12, "seed": 5, "extra_body": {"ignore_eos": True}}
    first = [choice.text for choice in client.completions.create(n=3, **fields).choices]
    assert [choice.text for choice in client.completions.create(n=3, **fields).choices] == first
    assert len(set(first)) == 3


def test_a_biased_token_and_a_stop_string_over_tokens(client: OpenAI):
    bias = {str(ord("a")): 100}
    reply = client.completions.create(model="sql", prompt="x", max_tokens=9, logit_bias=bias, temperature=0)
    assert reply.choices[0].text == "a" * 9
    reply = client.completions.create(
        model="sql", prompt="x", max_tokens=9, logit_bias=bias, temperature=0, stop="aa", extra_body={"min_tokens": 4}
    )
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == ("aaa", "stop")


def test_a_stop_token(client: OpenAI):
    extra = {"stop_token_ids": [ord("a")]}
    fields = {"model": "sql", "prompt": "x", "logit_bias": {str(ord("a")): 100}, "temperature": 0}
    (choice,) = client.completions.create(**fields, extra_body=extra).choices
    assert (choice.text, choice.finish_reason, choice.stop_reason) == ("", "stop", ord("a"))


def test_a_repeated_prompt_comes_from_the_cache(client: OpenAI, replicas: int):
    if replicas > 1:
        pytest.skip("each replica has a separate prefix cache")
    prompt = "a prompt of more than one block, asked for twice"
    first, second = (client.completions.create(model="poetry", prompt=prompt, max_tokens=1) for _ in range(2))
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert second.usage.prompt_tokens_details.cached_tokens >= 16
    other = client.completions.create(model="sql", prompt=prompt, max_tokens=1)
    assert other.usage.prompt_tokens_details.cached_tokens == 0


def test_errors(client: OpenAI):
    with pytest.raises(openai_package.NotFoundError):
        client.completions.create(model="prose", prompt="x")
    with pytest.raises(openai_package.BadRequestError, match=f"maximum context length is {MAX_MODEL_LEN} tokens"):
        client.completions.create(model="sql", prompt="x" * MAX_MODEL_LEN)
    with pytest.raises(openai_package.BadRequestError, match="no token 257"):
        client.completions.create(model="sql", prompt=[257])


@pytest.mark.promise(number=9)
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_blocks(served, stream: bool):
    service, url = served
    body = {"model": "sql", "prompt": "x" * 40, "max_tokens": 200, "ignore_eos": True, "stream": stream, "n": 4}
    with (
        httpx.Client(base_url=url, timeout=httpx.Timeout(30, read=0.05)) as http,
        contextlib.suppress(httpx.ReadTimeout),
        http.stream("POST", "/v1/completions", json=body) as reply,
    ):
        for _ in reply.iter_lines():
            break
    assert idle(service).kv_blocks_used == 0


@pytest.mark.promise(number=8)
def test_a_full_queue_is_429_with_a_counter(speaker):
    with serving(speaker, max_num_seqs=1, max_num_queued_reqs=1) as (service, url), httpx.Client(base_url=url) as http:
        body = {"model": "sql", "prompt": "x", "max_tokens": 200, "ignore_eos": True}
        replies = http.post("/v1/completions", json={**body, "n": 3})
        assert replies.status_code == 429
        assert replies.headers["retry-after"] == "1"
        assert replies.json()["error"]["code"] == "queue_full"
        idle(service)
        assert 'overtone_admission_rejections_total{reason="QueueFull"} 1.0' in http.get("/metrics").text
        assert http.post("/v1/completions", json={**body, "max_tokens": 2}).status_code == 200


def test_the_metrics_of_the_engine(served, client: OpenAI):
    service, url = served
    client.completions.create(model="sql", prompt=SQL, max_tokens=5, **GREEDY)
    idle(service)
    found = {name: sum(values.values()) for name, values in samples(url).items()}
    assert found["overtone_num_requests_running",] == found["overtone_num_requests_waiting",] == 0
    assert found["overtone_kv_cache_usage_perc",] == 0
    assert found["overtone_prompt_tokens_total",] >= len(SQL)
    assert found["overtone_expert_requests_total", "sql"] >= 1
    assert found["overtone_expert_resident", "sql", "device"] >= 1
    for name in ("request_queue_time", "request_prefill_time", "request_decode_time", "e2e_request_latency", "step"):
        assert found[f"overtone_{name}_seconds_count",] >= 1
    assert sum(value for name, value in found.items() if name[0] == "overtone_steps_total") >= 5


def test_models(client: OpenAI, speaker):
    cards = {card.id: card for card in client.models.list()}
    assert list(cards) == ["speaker", "auto", "backbone", "poetry", "sql"]
    assert cards["sql"].root == str(speaker.bundle.expert_path("sql"))
    assert cards["sql"].max_model_len == MAX_MODEL_LEN
    assert cards["sql"].created == 1767225600


def test_a_decision(served):
    with httpx.Client(base_url=served[1]) as http:
        decision = http.post("/v1/route", json={"prompt": POEM}).json()["data"][0]
    assert decision["expert"] == "poetry"
    assert decision["confidence"] == decision["scores"]["poetry"] > 0.5


@pytest.mark.parametrize("model", ["backbone", "sql"])
def test_embeddings_are_the_mean_of_the_hidden_states(client: OpenAI, speaker: TinyBundle, model: str):
    experts = ((model, 1.0),) if model != "backbone" else ()
    reply = client.embeddings.create(model=model, input=[SQL, POEM])
    with torch.inference_mode():
        for text, item in zip((SQL, POEM), reply.data, strict=True):
            state = speaker.dense(*experts).model(torch.tensor([list(text.encode())])).last_hidden_state[0].mean(0)
            torch.testing.assert_close(torch.tensor(item.embedding), state / state.norm(), atol=1e-4, rtol=1e-3)


def test_labels_have_the_probabilities_of_transformers(served, speaker: TinyBundle):
    labels = [" yes", " no", " it depends"]
    body = {"model": "sql", "input": SQL, "labels": labels}
    item = httpx.post(f"{served[1]}/v1/classify", json=body).json()["data"][0]
    model, prompt, found = speaker.dense(("sql", 1.0)), list(SQL.encode()), []
    with torch.inference_mode():
        for label in labels:
            tokens = [*prompt, *label.encode()]
            rows = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
            found.append(sum(float(rows[at - 1, tokens[at]]) for at in range(len(prompt), len(tokens))))
    assert item["logprobs"] == pytest.approx(found, abs=1e-3)
    assert item["probs"] == pytest.approx(torch.tensor(found).softmax(0).tolist(), abs=1e-3)
