import random
from collections import Counter

import pytest

from serve.engine.seen_tokens import SeenTokens


@pytest.mark.parametrize("seed", range(5))
def test_counts_follow_prompt_and_output(seed: int) -> None:
    rng = random.Random(seed)
    prompt = [rng.randrange(300) for _ in range(100)]
    output = [rng.randrange(300) for _ in range(400)]
    seen = SeenTokens(prompt, output[:50])
    for token in output[50:]:
        seen.append(token)
    found = dict(zip(seen.tokens.tolist(), seen.times.tolist(), strict=True))
    assert len(found) == len(seen.tokens)
    counts = Counter(output)
    assert found == {token: counts[token] for token in {*prompt, *output}}


def test_nothing_was_seen() -> None:
    seen = SeenTokens((), ())
    assert seen.tokens.tolist() == seen.times.tolist() == []
