"""The clients that are run, each in a separate virtual environment."""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.peers.environment import Environment


@dataclass(frozen=True)
class Client:
    """One client.

    Attributes:
        environment: what it is installed from; the first package is the client, whose version is reported.
        script: its file in the folder `scripts`.
    """

    environment: Environment
    script: str

    @property
    def version(self) -> str:
        """The client's version."""
        return self.environment.packages[0].partition("==")[2]


_OPENAI = Environment("openai", ("openai==3.57.0", "pydantic==2.14.4"))

CLIENTS: Mapping[str, Client] = {
    "openai": Client(_OPENAI, "openai_client.py"),
    "anthropic": Client(Environment("anthropic", ("anthropic==2.14.0",)), "anthropic_client.py"),
    "langchain-openai": Client(Environment("langchain", ("langchain-openai==1.7.4",)), "langchain_client.py"),
    "litellm": Client(Environment("litellm", ("litellm==1.110.2",)), "litellm_client.py"),
    "instructor": Client(Environment("instructor", ("instructor==1.17.0",)), "instructor_client.py"),
    "pydantic-ai": Client(Environment("pydantic-ai", ("pydantic-ai-slim[openai]==2.68.0",)), "pydantic_ai_client.py"),
    "llama-index": Client(
        Environment("llama-index", ("llama-index-llms-openai-like==0.8.1",)), "llama_index_client.py"
    ),
    # Not vLLM itself: what its tests expect of a server, asked with OpenAI's client.
    "vllm-completions": Client(_OPENAI, "vllm_completions.py"),
    "vllm-chats": Client(_OPENAI, "vllm_chats.py"),
}
"""Name → client."""
