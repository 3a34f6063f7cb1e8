"""YAML as configs are written: what it means, and what no config can say."""

import pytest

from rljax.errors import UserError
from rljax.yaml_text import MOST_LEVELS, check_plain, read_yaml

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(20))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1", "not valid YAML: while parsing a flow sequence"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor for the tag"),
        ("a: !!int x", "not valid YAML: 'x' is no int"),
        ("a: !!int", "not valid YAML: '' is no int"),
        ("a: !!timestamp x", "'x' is no timestamp"),
        ("a: " + "9" * 5000, "is no int"),
        ("[" * 3000, "not valid YAML: too many levels"),
        ("{steps: 1, steps: 2}", 'the key "steps" is there twice'),
        ("a: &a [*a]", "more than 32 levels, or it holds itself"),
        (LAUGHS, "more than 10,000 values, aliases counted"),
        ("a: {b: [.nan]}", "a.b: .nan is no number"),
        ("a: {b: 3.5e38}", "a.b: a number beyond what 32 bits hold"),
        ("a: {b: 0x8000000000000000}", "a.b: a number beyond 64 bits"),
        ('a: "\\0"', "a: text with a NUL character"),
        ('a: "\\ud800"', "a: text with half of a surrogate pair"),
        ('"\\0": 1', "a key must be a name, got '\\x00'"),
        ("a: {1: 2}", "a: a key must be a name, got 1"),
        ("a: !!set {b}", "a: a set is no value of a setting"),
        ("a: !!binary aGk=", "a: a bytes is no value of a setting"),
    ],
)
def test_what_no_config_can_say_is_refused(text, said):
    with pytest.raises(UserError) as error:
        read_yaml(text)
    assert said in str(error.value)


def test_the_rest_of_yaml_is_read():
    assert read_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a") == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 3},
        "c": {"x": 1, "y": 2},
    }
    assert read_yaml("a: {<<: {x: 1}, <<: {y: 2}}") == {"a": {"x": 1, "y": 2}}
    assert read_yaml("a: 2024-01-01") == {"a": "2024-01-01"}
    assert read_yaml("[.inf, -3.4e38, -9223372036854775808, null, é]") == [
        float("inf"),
        -3.4e38,
        -(2**63),
        None,
        "é",
    ]


def test_levels_are_counted():
    tree = 1
    for _ in range(MOST_LEVELS):
        tree = {"a": tree}
    check_plain(tree)
    with pytest.raises(UserError, match="more than 32 levels"):
        check_plain({"a": tree})
