"""litellm: chats and completions as `openai/` and `hosted_vllm/`, streams, tools, and Anthropic's messages."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
from calls import HI, MODEL, TOOL, URL, report

FIELDS = {"api_base": f"{URL}/v1", "api_key": "unused", "max_tokens": 8, "num_retries": 0}


def openai_chat():
    reply = litellm.completion(model=f"openai/{MODEL}", messages=HI, **FIELDS)
    message = reply.choices[0].message.model_dump()
    litellm.completion(model=f"openai/{MODEL}", messages=[*HI, message, *HI], **FIELDS)


def openai_streamed():
    assert list(litellm.completion(model=f"openai/{MODEL}", messages=HI, stream=True, **FIELDS))


def hosted_vllm():
    litellm.completion(model=f"hosted_vllm/{MODEL}", messages=HI, top_k=5, min_p=0.1, reasoning_effort="low", **FIELDS)


def cached_prompt():
    part = {"type": "text", "text": "Write 7.", "cache_control": {"type": "ephemeral"}}
    litellm.completion(model=f"openai/{MODEL}", messages=[{"role": "user", "content": [part]}], **FIELDS)


async def asynchronous():
    await litellm.acompletion(model=f"openai/{MODEL}", messages=HI, **FIELDS)


def text_completion():
    litellm.text_completion(model=f"text-completion-openai/{MODEL}", prompt="7", **FIELDS)


def tools():
    fields = {**FIELDS, "max_tokens": 100}
    reply = litellm.completion(
        model=f"openai/{MODEL}", messages=HI, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, **fields
    )
    message = reply.choices[0].message
    (call,) = message.tool_calls
    turns = [*HI, message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    litellm.completion(model=f"openai/{MODEL}", messages=turns, tools=[TOOL], **FIELDS)


def anthropic():
    litellm.completion(model=f"anthropic/{MODEL}", messages=HI, api_base=URL, api_key="unused", max_tokens=8)


def embeddings():
    found = litellm.embedding(model=f"openai/{MODEL}", input=["a"], api_base=f"{URL}/v1", api_key="unused")
    assert len(found.data) == 1


report(
    [
        *(openai_chat, openai_streamed, hosted_vllm, cached_prompt, asynchronous, text_completion, tools, anthropic),
        *(embeddings,),
    ]
)
