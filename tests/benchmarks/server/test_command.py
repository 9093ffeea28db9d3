from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.server import Scrape, at_least, bundle_of, command_line, show


def test_the_options_that_all_have(capsys: pytest.CaptureFixture[str]):
    parser = command_line("benchmarks.it", "Do it.")
    parser.add_argument("--requests", type=at_least(1), default=5)
    arguments = parser.parse_args(["--bundle", "there", "--json"])
    assert (bundle_of(arguments), arguments.json, arguments.requests) == (Path("there"), True, 5)
    for wrong in ("0", "-1", "x", "1.5"):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args(["--requests", wrong])
        assert f"{wrong!r} is not a whole number of at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(("as_json", "shown"), [(True, '{\n  "a": 1\n}\n'), (False, "a is 1\n")])
@pytest.mark.parametrize("good", [True, False])
def test_a_report(capsys: pytest.CaptureFixture[str], as_json: bool, shown: str, good: bool):
    assert show(Namespace(json=as_json), {"a": 1}, "a is 1", good) == (0 if good else 1)
    assert capsys.readouterr().out == shown


def test_what_a_server_says_of_itself():
    text = (
        "# HELP overtone_num_requests_running Sequences in the batch.\n"
        "overtone_num_requests_running 2.0\novertone_num_requests_waiting 1.0\n"
        'overtone_expert_resident{expert="a"} 1.0\n'
        "overtone_kv_cache_usage_perc 0.25\novertone_kv_cache_blocks 200.0\nprocess_resident_memory_bytes 3.5e+08\n"
    )
    scrape = Scrape.of(text)
    assert (scrape.unfinished, scrape.held_blocks, scrape.resident_bytes) == (3, 50, 3.5e8)
    assert "overtone_expert_resident" not in scrape.series
