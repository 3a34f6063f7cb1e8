"""What a run notices of its controllers."""

from rljax.run import moved_controllers


def test_a_controller_that_moved_is_named_once_with_its_new_value():
    def metrics(changes, weight):
        return {"shaping/length/weight": weight, "shaping/length/weight/changes": changes}

    seen = {}
    assert moved_controllers(seen, metrics(2, 2.25)) == {}  # the first step seen after a resume
    assert moved_controllers(seen, metrics(2, 2.25)) == {}
    assert moved_controllers(seen, metrics(3, 3.375)) == {"shaping/length/weight": 3.375}
    assert moved_controllers(seen, metrics(3, 3.375)) == {}
