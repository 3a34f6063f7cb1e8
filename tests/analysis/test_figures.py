"""What is shown when nobody asks, and what is said of a name that is wrong."""

import pytest
from recorded import figures, write_run

from rljax.analysis.figures import chosen, held_out
from rljax.analysis.reading import read_run
from rljax.errors import UserError


@pytest.fixture
def run(tmp_path):
    evaluations = [{"step": 0, "accuracy_sampled": 0.5, "heldout/policy/nll": 2.0}]
    records = [figures(1, **{"rewards/a/mean": 1.0, "rewards/b/mean": 0.0, "accuracy": 0.5})]
    return read_run(write_run(tmp_path, records, evaluations), "a")


def test_what_matters_is_shown_if_it_is_there(run):
    names = chosen([], [run])
    assert names[:2] == ["reward_mean", "accuracy"]
    assert "rewards/a/mean" not in names


def test_what_is_asked_for_is_shown_in_that_order(run):
    asked = ["truncated_ratio", "rewards/*/mean", "truncated_ratio", "accuracy_sampled"]
    names = chosen(asked, [run])
    assert names == ["truncated_ratio", "rewards/a/mean", "rewards/b/mean", "accuracy_sampled"]


def test_another_trainer_has_other_names(run):
    other = run._replace(metrics={"train/x": run.metrics["accuracy"]}, held_out={})
    assert chosen([], [other]) == ["train/x"]


def test_an_unknown_name_is_refused_with_the_nearest(run):
    with pytest.raises(UserError, match='unknown metric "lenght_mean"; did you mean "length_mean"'):
        chosen(["lenght_mean"], [run])


def test_evaluations_stand_beside_the_figure_of_training(run):
    assert held_out(run, "accuracy").values.tolist() == [0.5]
    assert held_out(run, "policy/nll").values.tolist() == [2.0]
    assert held_out(run, "truncated_ratio") is None
