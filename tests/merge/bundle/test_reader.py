from collections.abc import Iterator
from pathlib import Path

from merge.bundle import Bundle, ExpertCard, Manifest, open_bundle
from tests.merge.bundle.test_writer import write


class Counted(tuple[ExpertCard, ...]):
    """Counts how often it is gone through."""

    passes = 0

    def __iter__(self) -> Iterator[ExpertCard]:
        Counted.passes += 1
        return super().__iter__()


def test_thousands_of_experts_are_found_without_a_search_each(tmp_path: Path) -> None:
    write(tmp_path / "out")
    manifest: Manifest = open_bundle(tmp_path / "out").manifest
    (card,) = manifest.experts
    cards = Counted(card.model_copy(update={"name": f"e{number:04}", "nnz": number}) for number in range(2000))
    bundle = Bundle(tmp_path / "out", manifest.model_copy(update={"experts": cards}))
    Counted.passes = 0
    names = bundle.expert_names
    assert [bundle.card(name).nnz for name in names] == list(range(2000))
    assert bundle.expert_path("e1999") == tmp_path / "out" / "experts" / "e1999.safetensors"
    assert Counted.passes <= 2
