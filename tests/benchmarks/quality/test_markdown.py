from benchmarks.quality.markdown import markdown
from benchmarks.quality.report import entry
from benchmarks.quality.table import Cell, Cut

OWN = [Cell({"a": "1111", "b": "1100"}, 0), Cell({"a": "1110", "b": "1111"}, 0)]
FOUND = [Cell({"a": "1100", "b": "1000"}, 10), Cell({"a": "1110", "b": "0011"}, 30)]
SIZES = (1000, 400)


def test_columns_go_from_the_backbone_to_what_costs_most() -> None:
    rows = [
        entry("y", Cut("calibrated", 0.005), OWN, OWN, SIZES),
        entry("x", Cut("data-free", 0.01, "int8"), FOUND, OWN, SIZES),
        entry("x", Cut("data-free", 0.02), FOUND, OWN, SIZES, chosen={"lambda": 0.2}),
        entry("x", Cut("data-free", 0.01), FOUND, OWN, SIZES),
        entry("x", None, OWN, OWN, SIZES),
    ]
    assert markdown({"rows": rows}).splitlines() == [
        "| backbone | λ | alone | data-free 1 % | data-free 2 % | data-free 1 % int8 | calibrated 0.5 % |",
        "|---|---|---|---|---|---|---|",
        "| y |  |  |  |  |  | 100.0 ± 0.0 |",
        "| x | 0.2 | 100.0 ± 0.0 | 62.5 ± 17.7 | 62.5 ± 17.7 | 62.5 ± 17.7 |  |",
        "| bytes of an expert, of the backbone's |  |  | 2.00 % | 2.00 % | 2.00 % | 0.00 % |",
    ]


def test_a_classifier_of_its_own_is_named_beside_the_bytes() -> None:
    rows = [entry("x", Cut("data-free", 0.01), FOUND, OWN, SIZES)]
    assert "0.50 % more." in markdown({"rows": rows, "head_bytes": 5.0, "backbone_bytes": 1000}).split("\n\n")[1]


def test_what_was_routed_has_a_table_of_its_own() -> None:
    line = entry("x", Cut("data-free", 0.01), FOUND[:1], OWN[:1], SIZES)
    line["routed"] = {"normalized": {"mean": 0.4, "spread": 0.0}}
    router = [{"accuracy": 0.98765, "expected": {"a": 1}}]
    tables = markdown({"rows": [line], "router": router}).split("\n\n")
    assert tables[0].splitlines()[2] == "| x |  | 50.0 |"
    assert tables[1].splitlines()[0] == "| backbone, routed | λ | data-free 1 % |"
    assert tables[1].splitlines()[2] == "| x |  | 40.0 |"
    assert tables[2].splitlines()[::2] == ["| router, seed | accuracy |", "| 0 | 0.9877 |"]


def test_curves_are_tables_of_accuracies() -> None:
    points = [{"extra": 0, "sum": 0.5, "search": 0.25}, {"extra": 16, "sum": 0.0, "search": 0.25}]
    table = markdown({"rows": [], "curves": {"irrelevant": points}}).split("\n\n")[-1]
    assert table.splitlines() == [
        "| irrelevant: extra | sum | search |",
        "|---|---|---|",
        "| 0 | 0.500 | 0.250 |",
        "| 16 | 0.000 | 0.250 |",
    ]
