"""What other servers got wrong on their first day, each as a test by its number; most live beside what they test.

1. A mixed batch says what each request says alone; 2. an unknown expert is 404, never the backbone; 3. an expert whose
keys match nothing is a load error; 4. a reload under the same name meets no stale keys and values; 5. a failed load
leaves the server serving; 6. loading does not stall decoding; 7. more experts than slots; 8. a full queue is 429;
9. a client that leaves frees its blocks; 10. SIGTERM drains; 11. stop strings across tokens, UTF-8 never split;
12. every field is honoured or refused; 13. /metrics is bounded with 1,000 experts; 14. a batch of the backbone alone
launches no expert work; 15. odd inputs of kernels; 16. OpenAI's client; 17. a key on every route but the probes.
"""

import importlib

import httpx
import pytest

from serve.api.openapi import OPERATIONS
from serve.api.security.auth import OPEN_PATHS
from serve.config import ApiSettings
from tests.serve.api.fakes import FakeEngine, fake_service, live

ELSEWHERE = {
    1: [
        "tests.serve.engine.test_invariants:test_2_greedy_output_is_the_same_alone_and_in_a_mixed_batch",
        "tests.serve.api.test_end_to_end:test_many_at_once_say_what_each_says_alone",
    ],
    2: [
        "tests.serve.engine.test_invariants:test_3_an_unknown_expert_is_refused",
        "tests.serve.api.test_errors:test_an_unknown_model_is_404_and_says_what_there_is",
    ],
    3: ["tests.serve.engine.test_invariants:test_3_an_expert_whose_tensors_match_nothing_is_a_load_error"],
    4: [
        "tests.serve.engine.test_invariants:test_1_a_reload_with_other_weights_does_not_meet_old_keys_and_values",
        "tests.serve.api.admin.test_experts:test_a_new_expert_answers_under_its_name",
    ],
    5: [
        "tests.serve.engine.test_invariants:test_4_a_bad_expert_fails_its_requests_and_nothing_else",
        "tests.serve.api.admin.test_experts:test_what_is_not_an_expert_leaves_everything_as_it_was",
    ],
    6: ["tests.serve.engine.test_invariants:test_4_decoding_goes_on_while_an_expert_loads"],
    7: [
        "tests.serve.engine.test_invariants:test_5_more_experts_than_slots",
        "tests.serve.engine.test_invariants:test_5_a_flood_for_one_expert_does_not_starve_another",
        "tests.serve.engine.test_invariants:test_5_experts_share_the_seats_fairly",
    ],
    8: ["tests.serve.api.test_end_to_end:test_a_full_queue_is_429_with_a_counter"],
    9: ["tests.serve.api.test_end_to_end:test_a_client_that_leaves_frees_its_blocks"],
    10: ["tests.serve.api.test_server:test_sigterm_drains_and_exits_with_0_and_options_are_variables"],
    11: [
        "tests.serve.api.text.test_choice:test_a_stop_string_across_tokens_cuts_before_it_and_is_never_sent",
        "tests.serve.api.text.test_codec:test_characters_come_out_whole_with_their_last_byte",
    ],
    12: ["tests.serve.api.schemas.test_openai_fields:test_a_field_of_openais_is_honoured_or_refused_by_name"],
    13: ["tests.serve.metrics.test_metrics:test_a_thousand_experts_do_not_make_the_scrape_long"],
    14: ["tests.serve.engine.test_engine:test_a_batch_without_experts_is_plain"],
    15: [
        "tests.kernels.expert_linear.test_bank:test_fewer_entries_are_padded_and_replace_all_of_the_slot",
        "tests.kernels.expert_linear.test_bank:test_clear_empties_one_slot",
        "tests.kernels.expert_linear.test_cpu:test_matches_the_reference",
        "tests.kernels.expert_linear.test_compiled:test_matches_the_reference",
        "tests.kernels.expert_linear.test_compiled:test_strided_operands",
        "tests.kernels.expert_linear.test_dispatch:test_no_tokens",
        "tests.kernels.expert_linear.test_dispatch:test_non_contiguous_input",
        "tests.kernels.test_patch:test_an_all_zero_expert_keeps_nothing",
    ],
    16: [
        "tests.serve.api.openai.test_chat:test_a_plain_chat",
        "tests.serve.api.openai.test_completions:test_a_plain_completion",
    ],
}
PROTECTED = sorted({*OPERATIONS, ("GET", "/openapi.json"), ("GET", "/no/such/path")} - {("GET", p) for p in OPEN_PATHS})


@pytest.mark.parametrize("place", [place for places in ELSEWHERE.values() for place in places])
def test_1_to_16_are_where_they_are_said_to_be(place: str):
    module, name = place.split(":")
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize(("method", "path"), PROTECTED)
def test_17_a_key_is_asked_for_on_every_route_but_the_probes(method: str, path: str):
    settings = ApiSettings(api_keys=("key",), admin_api_keys=("root",))
    with live(fake_service(FakeEngine()), settings) as url, httpx.Client(base_url=url) as http:
        assert http.request(method, path).status_code == 401
        assert http.request(method, path, headers={"Authorization": "Bearer no"}).status_code == 401
        assert http.request(method, path, headers={"Authorization": "Bearer key"}).status_code != 401


def test_17_what_is_open_is_the_probes_and_the_scrape():
    assert set(OPEN_PATHS) <= {"/", "/health", "/ready", "/metrics"}
