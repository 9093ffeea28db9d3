"""What vLLM 0.33.0's tests of its completions, tokenizer and HTTP routes expect, asked with openai.

Each call is named after the test whose expectations it states. Tests that expect one model's words are left out.
"""

import asyncio

from calls import MODEL, URL, ask, report
from openai import AsyncOpenAI, BadRequestError, OpenAI

client = OpenAI(base_url=f"{URL}/v1", api_key="unused", max_retries=0)
PROMPT = "Hello, my name is"
FIELDS = {"model": MODEL, "prompt": PROMPT, "max_tokens": 5, "temperature": 0.0, "extra_body": {"ignore_eos": True}}
LONG = "one two three four five six seven eight nine ten " * 4


def create(**fields):
    return client.completions.create(**{**FIELDS, **fields})


def refused(**fields):
    """The request is answered with 400, and the server continues."""
    try:
        create(**fields)
    except BadRequestError:
        assert create().choices[0].finish_reason == "length"
        return
    raise AssertionError("it was not refused")


def single_completion():
    reply = create()
    assert (len(reply.choices), reply.choices[0].finish_reason) == (1, "length")
    assert reply.id
    assert reply.choices[0].text
    usage = reply.usage
    assert (usage.completion_tokens, usage.total_tokens) == (5, usage.prompt_tokens + 5)
    tokens = ask("/tokenize", {"prompt": PROMPT}).json()["tokens"]
    assert create(prompt=tokens).choices[0].text == reply.choices[0].text


def no_logprobs():
    assert create(logprobs=None).choices[0].logprobs is None


def zero_logprobs():
    found = create(logprobs=0).choices[0].logprobs
    assert len(found.token_logprobs) == len(found.tokens) == len(found.text_offset) == 5
    assert all(len(top) <= 1 for top in found.top_logprobs)


def some_logprobs():
    found = create(logprobs=5).choices[0].logprobs
    assert all(5 <= len(top) <= 6 for top in found.top_logprobs)


def too_many_completion_logprobs():
    refused(logprobs=21)
    refused(logprobs=30, stream=True)


def prompt_logprobs_below_zero():
    refused(extra_body={"prompt_logprobs": -1})


def completion_streaming():
    whole = create().choices[0].text
    chunks = list(create(stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["length"]
    assert all(chunk.usage is None for chunk in chunks)


def parallel_no_streaming():
    reply = create(n=3, seed=1, temperature=1.0)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert len({choice.text for choice in reply.choices}) > 1


def parallel_streaming():
    texts, ended = {}, {}
    for chunk in create(n=3, stream=True, temperature=1.0):
        (choice,) = chunk.choices
        texts[choice.index] = texts.get(choice.index, "") + choice.text
        ended[choice.index] = ended.get(choice.index, 0) + (choice.finish_reason is not None)
    assert ended == {0: 1, 1: 1, 2: 1}
    assert len(set(texts.values())) > 1


def completion_stream_options():
    chunks = list(create(stream=True, stream_options={"include_usage": True}))
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 5)
    chunks = list(create(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True}))
    assert all(
        chunk.usage.total_tokens == chunk.usage.prompt_tokens + chunk.usage.completion_tokens for chunk in chunks
    )
    refused(stream_options={"include_usage": True})


def batch_completions():
    reply = create(prompt=[PROMPT, PROMPT])
    assert [choice.index for choice in reply.choices] == [0, 1]
    assert len({choice.text for choice in reply.choices}) == 1
    assert [choice.index for choice in create(prompt=[PROMPT] * 2, n=2, temperature=1.0).choices] == [0, 1, 2, 3]
    found = {}
    for chunk in create(prompt=[PROMPT, PROMPT], stream=True):
        found[chunk.choices[0].index] = found.get(chunk.choices[0].index, "") + chunk.choices[0].text
    assert found == {number: choice.text for number, choice in enumerate(reply.choices)}


def echo_logprob_completion():
    tokens = ask("/tokenize", {"prompt": PROMPT}).json()["tokens"]
    for prompt in (PROMPT, tokens):
        found = create(prompt=prompt, echo=True, logprobs=1).choices[0]
        assert found.text.endswith(create(prompt=prompt).choices[0].text)
        assert PROMPT in found.text
        assert (len(found.logprobs.tokens), found.logprobs.token_logprobs[0]) == (len(tokens) + 5, None)
        assert all(len(top) in (1, 2) for top in found.logprobs.top_logprobs[1:])


def invalid_json_schema():
    refused(extra_body={"structured_outputs": {"json": {"type": "object", "properties": {"a": {"type": "nothing"}}}}})


def invalid_regex():
    refused(extra_body={"structured_outputs": {"regex": "[.*"}})


def invalid_grammar():
    refused(extra_body={"structured_outputs": {"grammar": "root ::= ["}})


def stream_options_and_logprobs_with_long_prompts():
    chunks = list(create(prompt=LONG, stream=True, stream_options={"include_usage": True}, logprobs=1))
    tokens = sum(len(chunk.choices[0].logprobs.tokens) for chunk in chunks if chunk.choices)
    assert (tokens, chunks[-1].usage.completion_tokens) == (5, 5)


def tokenize_completions_and_detokenize():
    found = ask("/tokenize", {"model": MODEL, "prompt": PROMPT, "add_special_tokens": False}).json()
    assert (found["count"], found["max_model_len"] > 0) == (len(found["tokens"]), True)
    assert ask("/detokenize", {"model": MODEL, "tokens": found["tokens"]}).json() == {"prompt": PROMPT}


def health_and_content_type():
    assert ask("/health").status == 200
    assert ask("/v1/completions", {}, "application/x-www-form-urlencoded").status == 415


def custom_request_id_header():
    assert ask("/v1/models", X_Request_Id="mine").headers["x-request-id"] == "mine"


async def _cancelled():
    async with AsyncOpenAI(base_url=f"{URL}/v1", api_key="unused", max_retries=0) as other:
        fields = {**FIELDS, "max_tokens": 100}
        tasks = [asyncio.create_task(other.completions.create(**fields)) for _ in range(20)]
        await asyncio.sleep(0.5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (await other.completions.create(**FIELDS)).choices[0].finish_reason == "length"


async def request_cancellation():
    await _cancelled()


report(
    [
        *(single_completion, no_logprobs, zero_logprobs, some_logprobs, too_many_completion_logprobs),
        *(prompt_logprobs_below_zero, completion_streaming, parallel_no_streaming, parallel_streaming),
        *(completion_stream_options, batch_completions, echo_logprob_completion, invalid_json_schema, invalid_regex),
        *(invalid_grammar, stream_options_and_logprobs_with_long_prompts, tokenize_completions_and_detokenize),
        *(health_and_content_type, custom_request_id_header, request_cancellation),
    ]
)
