"""Asking over HTTP, with the standard library alone: measuring a server needs nothing else installed."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from http.client import HTTPException
from typing import Any

from merge.evaluate.ask import Question, Reply, nothing

TIMEOUT_SECONDS = 600
AT_ONCE = 32

_NO_CHATS = frozenset({400, 404, 405})


class ServerRefusedError(ValueError):
    """The server cannot be reached, or refused a request. The message is one line.

    Attributes:
        status: of the reply; 0 if there was none.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Served:
    """The models of a server.

    Attributes:
        experts: their names.
        backbone: what the model without an expert is called.
        auto: what asks the router; None if there is none.
    """

    experts: tuple[str, ...]
    backbone: str
    auto: str | None


class Server:
    """A server with OpenAI's API.

    Attributes:
        url: its address, without /v1.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def served(self) -> Served:
        """The models that it lists. A model with a parent, as LoRAs have one in vLLM, is an expert.

        Raises:
            ServerRefusedError: it does not answer, or lists no model.
        """
        parents = {str(card["id"]): card.get("parent") for card in self._request("/v1/models", None).get("data", ())}
        plain = [name for name, parent in parents.items() if parent is None]
        if not plain:
            raise ServerRefusedError(f"{self.url} lists no model without a parent: it is not an Overtone server")
        experts = tuple(name for name, parent in parents.items() if parent is not None)
        return Served(experts, "backbone" if "backbone" in plain else plain[0], "auto" if "auto" in plain else None)

    def chats(self, model: str) -> bool:
        """Whether it takes chats: a server of a model without a chat template refuses them.

        Raises:
            ServerRefusedError: it fails in another way.
        """
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
        try:
            self._request("/v1/chat/completions", body)
        except ServerRefusedError as error:
            if error.status in _NO_CHATS:
                return False
            raise
        return True

    def ask(
        self, questions: Sequence[Question], answered: Callable[[], None] = nothing, chat: bool = False
    ) -> list[Reply]:
        """Ask up to 32 questions at a time.

        Args:
            questions: what is asked.
            answered: called after each reply.
            chat: ask as chats; otherwise as plain completions.

        Raises:
            ServerRefusedError: the server refuses one of them or cannot be reached.
        """
        with ThreadPoolExecutor(AT_ONCE) as pool:
            waiting = [pool.submit(self._ask_one, question, chat) for question in questions]
            try:
                for done in as_completed(waiting):
                    done.result()
                    answered()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            return [done.result() for done in waiting]

    def _ask_one(self, question: Question, chat: bool) -> Reply:
        body: dict[str, Any] = {"model": question.model, "max_tokens": question.max_tokens, "temperature": 0}
        if not chat:
            found = self._request("/v1/completions", {**body, "prompt": question.prompt})
            return _reply(found, str(found["choices"][0]["text"]))
        user = [{"role": "user", "content": question.prompt}]
        messages = user if question.messages is None else [asdict(message) for message in question.messages]
        found = self._request("/v1/chat/completions", {**body, "messages": messages})
        return _reply(found, str(found["choices"][0]["message"].get("content") or ""))

    def _request(self, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, self._headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
                found = json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                reason = _reason(error.read())
            raise ServerRefusedError(
                f"{self.url}{path} answered {error.code}: {reason or error.reason}", error.code
            ) from error
        except (OSError, HTTPException) as error:
            reason = str(getattr(error, "reason", error))
            raise ServerRefusedError(f"{self.url} cannot be reached: {reason}") from error
        except ValueError as error:
            raise ServerRefusedError(f"{self.url}{path} did not answer with JSON") from error
        if not isinstance(found, dict):
            raise ServerRefusedError(f"{self.url}{path} did not answer with a JSON object")
        return found


def _reply(found: Mapping[str, Any], text: str) -> Reply:
    usage = found.get("usage") or {}
    return Reply(text, str(found["model"]), int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0)))


def _reason(body: bytes) -> str:
    """The message of OpenAI's error document; empty if the body is something else."""
    try:
        document = json.loads(body)
        return " ".join(str(document["error"]["message"]).split())
    except (ValueError, KeyError, TypeError):
        return ""
