import pytest

from merge.wording import counted


@pytest.mark.parametrize(("number", "text"), [(0, "0 errors"), (1, "1 error"), (2, "2 errors"), (1000, "1,000 errors")])
def test_counted(number: int, text: str):
    assert counted(number, "error") == text
