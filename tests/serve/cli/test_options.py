import pytest
import typer

from serve.cli.options import byte_size, option


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("0", 0), ("1000", 1000), ("1k", 1000), ("2KiB", 2048), ("1.5MiB", 1572864), ("2GB", 2 * 10**9)),
        *(("2 gib", 2**31), ("1T", 10**12), ("12b", 12)),
    ],
)
def test_sizes(text: str, expected: int):
    assert byte_size(text) == expected


@pytest.mark.parametrize("text", ["", "x", "-1", "1 XB", "1e9", "iB", "5i"])
def test_what_is_not_a_size(text: str):
    with pytest.raises(typer.BadParameter, match="is not a size"):
        byte_size(text)


@pytest.mark.parametrize(
    ("name", "variable"),
    [("--port", "OVERTONE_PORT"), ("--max-num-seqs", "OVERTONE_MAX_NUM_SEQS"), ("--on/--no-on", "OVERTONE_ON")],
)
def test_the_variable_of_an_option(name: str, variable: str):
    assert option(name, help="").envvar == variable
