from typing import Any

import pytest

from serve.engine import EngineConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs is 0; it must be at least 1"),
        ({"block_size": -1}, "block_size is -1"),
        ({"kv_cache_bytes": 0}, "kv_cache_bytes is 0; it must be at least 1, or unset"),
        ({"patching": "on"}, "patching is 'on'; it must be one of off, auto"),
        ({"max_num_queued_reqs": -1}, "max_num_queued_reqs is -1"),
        ({"max_num_seqs": 65, "max_num_batched_tokens": 64}, "max_num_batched_tokens 64 is less than max_num_seqs 65"),
    ],
)
def test_what_cannot_work_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineConfig(**settings)
