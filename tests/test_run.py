"""What a run notices in its metrics."""

from rljax.run import moved_controllers, new_warnings


def test_a_controller_that_moved_is_named_once_with_its_new_value():
    def metrics(changes, weight):
        return {"shaping/length/weight": weight, "shaping/length/weight/changes": changes}

    seen = {}
    assert moved_controllers(seen, metrics(2, 2.25)) == {}  # the first step seen after a resume
    assert moved_controllers(seen, metrics(2, 2.25)) == {}
    assert moved_controllers(seen, metrics(3, 3.375)) == {"shaping/length/weight": 3.375}
    assert moved_controllers(seen, metrics(3, 3.375)) == {}


def test_trl_5697_most_responses_were_truncated_without_a_warning():
    said = set()
    assert new_warnings(said, {"truncated_ratio": 0.5, "left_out_ratio": 0.9}) == []
    (text,) = new_warnings(said, {"truncated_ratio": 0.97})
    assert "97% of the responses are cut off" in text
    assert new_warnings(said, {"truncated_ratio": 0.99}) == []  # once


def test_a_step_that_teaches_nothing_is_said_once():
    said = set()
    assert new_warnings(said, {"nll": 1.0}) == []
    (text,) = new_warnings(said, {"left_out_ratio": 1.0})
    assert "nothing is learned" in text
    assert new_warnings(said, {"left_out_ratio": 1.0}) == []


def test_a_metric_that_is_not_finite_is_said_once_unless_an_update_was_left_out():
    said = set()
    left_out = {"guard/skipped_updates": 1, "policy/loss": float("nan")}
    assert new_warnings(said, left_out) == []
    strange = {"guard/skipped_updates": 0, "my/ratio": float("inf"), "policy/loss": 1.0}
    (text,) = new_warnings(said, strange)
    assert text == "my/ratio is inf, which is recorded as null; it affects no parameter"
    assert new_warnings(said, strange) == []
