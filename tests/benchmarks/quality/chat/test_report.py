from benchmarks.quality.chat.report import routed_marks
from benchmarks.quality.routing import Routing


def test_a_request_has_the_mark_of_what_it_went_to() -> None:
    chosen = {"a": ["a", "", "b", "a"]}
    routing = Routing(chosen, 0.5, 0.0, None, None, 0.0, 1.0)
    marks = routed_marks(routing, {"a": [0.9, 0.8, 0.7, 0.6]}, {"a": [0.1, 0.2, 0.3, 0.4]})
    assert marks == {"a": [0.9, 0.2, 0.0, 0.6]}
