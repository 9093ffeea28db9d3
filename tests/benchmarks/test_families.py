from benchmarks.families import measure, shape


def test_every_variant_takes_its_own_way() -> None:
    cases = measure(shape(layers=1, hidden=128, inner=64), sequences=2, rounds=2)
    assert [case.mode for case in cases] == ["compiled", "layers", "routed"]
    assert all(case.sequences == 2 and case.ms > 0 for case in cases)
    assert cases[0].ratio == 1
