"""The compiler's reports on memory, in little."""

from rljax.planning.buffers import Buffer, peaks, schedule, temporaries

ASSIGNMENT = """BufferAssignment:
allocation 0: size 400, page 0, parameter 0, shape |f32[100]| at ShapeIndex {}:
 value: <1 x @0> (size=400,offset=0): f32[100]{0}
allocation 1: size 1000, page 0, preallocated-temp:
 value: <2 a @0> (size=600,offset=0): f32[150]{0}
 value: <3 b{1} @0> (size=400,offset=600): f32[100]{0:T(128)}
 value: <4 c (phi) @0> (size=600,offset=0): f32[150]{0}
 value: <5 never @0> (size=600,offset=0): f32[150]{0}
allocation 2: size 99999, color 1, page 0, preallocated-temp:
 value: <6 vector @1> (size=99999,offset=0): u8[99999]{0}
"""
RANGES = """HloLiveRange (max 5):
  InstructionSequence:
    0:x
    1:a
    2:b
    3:c
    4:y
  BufferLiveRange:
    x{}:0-5
    a{}:1-3
    b{1}:2-3
    c{}:3-5
    vector{}:1-4
  Live ranges at 3 (peak):
    a: 600 bytes
"""


def test_temporaries_have_a_place_and_a_time():
    """Those of the main memory: not a parameter, not what has a color."""
    found = temporaries(ASSIGNMENT, RANGES)
    assert found == [
        Buffer("a", "f32[150]{0}", 600, 0, 1, 3),
        Buffer("b{1}", "f32[100]{0:T(128)}", 400, 600, 2, 3),
        Buffer("c", "f32[150]{0}", 600, 0, 3, 5),
    ]
    assert schedule(RANGES) == ["x", "a", "b", "c", "y"]


def test_the_peak_of_each_phase():
    """Where a and c lie in one place, they count once."""
    found = peaks(
        temporaries(ASSIGNMENT, RANGES), ["sample", "sample", "sample", "update", "update"]
    )
    size, largest = found["sample"]
    assert size == 1000
    assert [one.name for one in largest] == ["a", "b{1}"]
    assert found["update"][0] == 1000
    last, _ = peaks(temporaries(ASSIGNMENT, RANGES), [*"sssu", "update"])["update"]
    assert last == 600
