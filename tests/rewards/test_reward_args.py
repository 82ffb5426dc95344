"""reward_args: arguments for reward functions, by name."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest

from runs import config, trainer
from seedtune import ESConfig, ESTrainer
from seedtune.cli import model_ref
from seedtune.errors import ConfigError, JournalError, RewardError
from seedtune.rewards.call import Batch, call
from seedtune.rewards.function import Reward, eval_functions, reward_functions
from seedtune.rewards.serialize import carried, load


def scaled(completions, factor=1.0, **kwargs):
    return [factor * len(c) for c in completions]


def bare(completions, **kwargs):
    return [0.0] * len(completions)


def batch(*texts, **columns):
    return Batch(["2 + 2?"] * len(texts), list(texts), [[1]] * len(texts), columns)


def test_arguments_reach_functions_of_the_user_and_our_own():
    functions = reward_functions(
        [scaled, scaled, "calibration"], {"scaled_2": {"factor": 3}, "calibration": {"correctness": 0}}
    )
    assert [f.name for f in functions] == ["scaled", "scaled_2", "calibration"]
    found = [call(f, batch("4 Confidence: 50%", solution=["4"])).rewards for f in functions]
    assert found == [[17], [51], [-0.25]]
    measured = eval_functions([bare, scaled], functions[:1], {"scaled": {"factor": 2}})
    assert call(measured[1], batch("abc")).rewards == [6]


def test_arguments_travel_to_other_processes():
    functions = carried(reward_functions([scaled, "majority"], {"scaled": {"factor": 2}}))
    assert call(load(functions.pickled)[0], batch("abc")).rewards == [6]
    assert functions.names == ("scaled", "majority")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"scaled": {"faktor": 2}}, "'scaled' has no argument 'faktor'; it takes factor"),
        ({"scaled": {"completions": []}}, "no argument 'completions'"),
        ({"bare": {"factor": 2}}, "no argument 'factor'; it takes none"),
        ({"majority": {"equivalance": "math"}}, "no argument 'equivalance'; it takes equivalence, answer"),
        ({"self_certainty": {"equivalence": "math"}}, "it takes none"),
        ({"scaled": 2}, "needs a mapping"),
        ({"skaled": {"factor": 2}}, "no reward function 'skaled' in this run; there are: scaled, bare, majority"),
    ],
)
def test_what_no_function_takes(arguments, says):
    functions = [scaled, bare, "majority", "self_certainty"]
    with pytest.raises(ConfigError, match=says):
        eval_functions(None, reward_functions(functions, arguments), arguments)


def test_values_are_checked_with_the_columns():
    def bound(name, **arguments):
        return reward_functions([name], {name: arguments})[0]

    bound("calibration", correct="answered").check_columns(["prompt"])
    bound("calibration", equivalence="math").check_columns(["prompt", "solution"])
    with pytest.raises(RewardError, match="with the column 'solution', which the dataset lacks"):
        Reward("calibration").check_columns(["prompt"])
    with pytest.raises(RewardError, match="'correct' requires 'solution'"):
        bound("calibration", correct="correct").check_columns(["prompt"])
    with pytest.raises(RewardError, match="no built-in reward 'nobody'"):
        bound("calibration", correct="nobody").check_columns(["prompt"])
    with pytest.raises(ConfigError, match="has a column 'factor'"):
        reward_functions([scaled], {"scaled": {"factor": 2}})[0].check_columns(["prompt", "factor"])
    with pytest.raises(ConfigError, match="correctness is a"):
        bound("calibration", correctness="much").check_columns(["prompt", "solution"])
    with pytest.raises(ConfigError, match="'no/model' cannot be loaded"):
        bound("calibration", equivalence={"entailment": "no/model"}).check_columns(["prompt", "solution"])
    with pytest.raises(ConfigError, match="equivalence is exact"):  # a partial of the user's is one of ours, too
        Reward(partial(Reward("calibration").function, equivalence="?")).check_columns(["prompt", "solution"])


def test_a_model_that_is_not_there_ends_the_run_before_anything_is_loaded_or_written(tmp_path):
    args = ESConfig(
        output_dir=str(tmp_path / "run"), reward_args={"calibration": {"equivalence": {"embeddings": "no/model"}}}
    )
    with pytest.raises(ConfigError, match=r"equivalence: embeddings: the model 'no/model' cannot be loaded"):
        ESTrainer("no/such/model", "calibration", args, [{"prompt": "a", "solution": "b"}])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("judge", "kept"), [("answered", True), ("evil.py:f", False), (["x"], False)])
def test_a_patch_from_elsewhere_names_no_code(monkeypatch, judge, kept):
    config = {"reward_funcs": ["calibration"], "reward_args": {"calibration": {"correct": judge}}}
    monkeypatch.setattr(model_ref, "_patch", lambda name: SimpleNamespace(header={"config": config}))
    assert ("reward_args" in model_ref.own_settings("from-elsewhere.seedtune", {})) is kept


def test_the_journal_names_them_only_where_there_are_some():
    assert "reward_args" not in ESConfig().trajectory_config()
    given = {"majority": {"equivalence": "math"}}
    assert ESConfig(reward_args=given).trajectory_config()["reward_args"] == given
    assert ESConfig.trajectory_defaults()["reward_args"] == {}
    with pytest.raises(ConfigError, match=r"functools\.partial"):
        ESConfig(reward_args={"scaled": {"factor": scaled}})


def test_a_run_with_arguments_is_another_run(tmp_path):
    made = trainer(tmp_path, reward_funcs=scaled, max_steps=1, reward_args={"scaled": {"factor": -2}})
    result = made.train()
    assert result.metrics["eval/reward"] < 0
    other = ESTrainer(
        made.model, scaled, config(tmp_path, max_steps=2), made.prompts.train, processing_class=made.processing_class
    )
    with pytest.raises(JournalError, match="reward_args"):
        other.train(resume_from_checkpoint=True)
