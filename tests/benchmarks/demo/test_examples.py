import json
import shlex

from benchmarks.demo import curl_lines
from benchmarks.zoo import TASKS


def test_the_lines_can_be_pasted_into_a_shell() -> None:
    lines = curl_lines("http://127.0.0.1:8000")
    assert len(lines) == 3
    for line in lines:
        words = shlex.split(line)
        assert words[:3] == ["curl", "-s", "http://127.0.0.1:8000/v1/completions"]
        body = json.loads(words[-1])
        assert body["model"] in {"auto", *(task.name for task in TASKS)}
        assert body["temperature"] == 0
