import torch

from benchmarks.attention import Case, measure_case, summarise


def test_both_variants_of_a_batch_are_measured() -> None:
    torch_case, ours = measure_case(2, 20, 3, torch.bfloat16, 1)
    assert (torch_case.mode, ours.mode) == ("torch", "ours")
    assert torch_case.ratio == 1
    assert all(
        case.us > 0 and (case.sequences, case.context, case.queries) == (2, 20, 3) for case in (torch_case, ours)
    )


def test_the_summary_tells_decoding_from_prompts() -> None:
    def case(queries: int, mode: str, us: float, ratio: float) -> Case:
        return Case(1, 128, queries, "bfloat16", mode, us, ratio, 2.0)

    cases = [
        *(case(1, "torch", 99.0, 1.0) for _ in range(3)),
        *(case(1, "ours", us, ratio) for us, ratio in ((4.0, 0.5), (6.0, 0.25), (20.0, 0.75))),
        case(9, "ours", 5.0, 0.4),
    ]
    assert summarise(cases) == {"decode_vs_torch": 0.5, "decode_vs_floor": 3.0, "prefill_vs_torch": 0.4}
