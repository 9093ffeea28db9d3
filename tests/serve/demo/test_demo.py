import json
import shlex
from dataclasses import replace

from serve.demo import TINY, Demo
from serve.demo.zoo import TASKS


def bodies(demo: Demo) -> list[dict[str, object]]:
    """What the lines ask for, after the shell has read them."""
    found = []
    for line in demo.curl_lines("http://127.0.0.1:8000"):
        words = shlex.split(line)
        path = "chat/completions" if demo.chat else "completions"
        assert words[:3] == ["curl", "-s", f"http://127.0.0.1:8000/v1/{path}"]
        found.append(json.loads(words[-1]))
    return found


def test_the_lines_can_be_pasted_into_a_shell() -> None:
    lines = bodies(TINY)
    assert len(lines) == 3
    for body in lines:
        assert body["model"] in {"auto", *(task.name for task in TASKS)}
        assert body["temperature"] == 0
        assert isinstance(body["prompt"], str)


def test_a_chat_model_is_asked_with_messages() -> None:
    demo = replace(TINY, chat=True, tried=(("auto", "What's 1 + 1?"),))
    assert bodies(demo)[0]["messages"] == [{"role": "user", "content": "What's 1 + 1?"}]
