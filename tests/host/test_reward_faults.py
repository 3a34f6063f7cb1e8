"""Everything that a reward in Python may do wrong (``tests/reward_faults.py``), in one pool."""

import pytest
import reward_faults
from reward_faults import CASES, as_expected, observe


@pytest.fixture(scope="module")
def results():
    return observe()


@pytest.mark.parametrize("which", range(len(CASES)), ids=[case.what for case in CASES])
def test_a_fault_costs_its_own_call_alone(results, which):
    outcome, following = results[which]
    assert as_expected(CASES[which], outcome), outcome
    assert following == 1.0


def test_the_table_says_what_was_not_expected(results, monkeypatch, capfd):
    monkeypatch.setattr(reward_faults, "observe", lambda: results)
    assert reward_faults.main() == 0
    assert f"{len(CASES)} of {len(CASES)} as expected" in capfd.readouterr().out
    monkeypatch.setattr(reward_faults, "observe", lambda: [(2.0, 1.0), *results[1:]])
    assert reward_faults.main() == 1
    table = capfd.readouterr().out
    assert "| raises | ValueError: too much | 2.0 | 1.0 | NOT |" in table
