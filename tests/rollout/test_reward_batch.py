"""What reward functions are called with: completions as they end, or all of a prompt, or all of a member."""

from __future__ import annotations

import pytest

from runs import ROWS, Notes, journal_of, letters, trainer
from seedtune.data.prompts import PromptBatch
from seedtune.engines.base import Completion, Prompt
from seedtune.errors import ConfigError
from seedtune.evaluation.evaluate import EvalSpec, evaluate
from seedtune.rewards.function import Reward
from seedtune.rewards.scorer import Scorer
from seedtune.rollout.chunks import Chunk
from seedtune.rollout.collector import ChunkOutput, RolloutCollector
from tiny_engine import engine

CALLS = []


def rank(prompts, completions, **kwargs):
    """The share of the completions beside it that are no longer: means something in whole groups only."""
    CALLS.append(list(prompts))
    lengths = [len(set(c)) for c in completions]
    return [sum(other <= mine for other in lengths) / len(lengths) for mine in lengths]


@pytest.fixture(autouse=True)
def calls():
    CALLS.clear()
    return CALLS


@pytest.mark.parametrize("how", [{}, {"perturbation": "lowrank", "antithetic": True}])
@pytest.mark.parametrize("chunk", [3, 8, 64])
def test_a_call_has_all_completions_of_a_prompt(tmp_path, calls, how, chunk):
    t = trainer(
        tmp_path, reward_funcs=rank, reward_batch="group", max_steps=2, chunk_size=chunk, drift_samples=0, **how
    )
    t.train()
    prompts = [row["prompt"] for row in ROWS]
    evaluation, iteration = [[p] for p in prompts], [[p] * 4 for p in prompts]
    assert sorted(calls) == sorted([*evaluation, *iteration, *iteration, *evaluation])


def test_a_call_has_all_completions_of_a_member(tmp_path, calls):
    trainer(tmp_path, reward_funcs=rank, reward_batch="member", max_steps=1, chunk_size=3).train()
    assert calls == [[row["prompt"] for row in ROWS]] * 6


def test_members_that_answer_prompts_of_their_own(tmp_path, calls):
    options = {"fitness_shaping": "group", "prompts_per_member": 2, "prompts_per_step": 4}
    trainer(tmp_path, reward_funcs=rank, reward_batch="group", max_steps=1, eval_steps=0, **options).train()
    groups = [call for call in calls if len(call) > 1]
    assert sorted(len(call) for call in groups) == [2, 2, 2, 2]
    assert all(len(set(call)) == 1 for call in groups)


@pytest.mark.parametrize("reward_batch", ["group", "member"])
def test_wherever_it_is_scored_the_run_is_the_same(tmp_path, reward_batch):
    def rank(completions, **kwargs):  # of its own, so that the worker need not import this module
        lengths = [len(set(c)) for c in completions]
        return [sum(other <= mine for other in lengths) / len(lengths) for mine in lengths]

    async def rank_later(completions, **kwargs):
        return rank(completions)

    for name, function, workers in (("a", rank, 0), ("b", rank, 1), ("c", rank_later, 1)):
        options = {"reward_funcs": function, "reward_workers": workers, "reward_batch": reward_batch}
        trainer(tmp_path, output_dir=str(tmp_path / name), max_steps=2, reward_timeout=600, **options).train()
    assert journal_of(tmp_path, "a") == journal_of(tmp_path, "b") == journal_of(tmp_path, "c")


def test_functions_of_single_completions_do_not_notice(tmp_path):
    for reward_batch in ("any", "group", "member"):
        trainer(tmp_path, output_dir=str(tmp_path / reward_batch), reward_batch=reward_batch, max_steps=2).train()
    lines = [journal_of(tmp_path, name).splitlines() for name in ("any", "group", "member")]
    rewards = [[line.split(b'"rewards"')[1].split(b"]")[0] for line in run[1:]] for run in lines]
    assert rewards[0] == rewards[1] == rewards[2]


def test_samples_of_a_prompt_are_one_group(calls):
    spec = EvalSpec(max_completion_length=8, samples=3, ks=(1,), reward_workers=0, reward_batch="group")
    evaluate(engine(), spec, [{"prompt": "one"}, {"prompt": "two"}], [rank])
    assert sorted(calls) == [["one"], ["one"] * 3, ["two"], ["two"] * 3]


def test_members_that_were_dropped_are_left_out(calls):
    batch = PromptBatch((7, 5), (Prompt("p", (1,)), Prompt("q", (2,))), {})
    plan = [Chunk((m, m), (0, 1), seed=0) for m in range(3)]
    with Scorer([Reward(rank)], workers=0, timeout=60) as scorer:
        collector = RolloutCollector(batch, scorer, {}, plan, "group")
        for m in (2, 0):  # the last comes first; of the second there is half
            collector.ended(m, plan[m], ChunkOutput({n: Completion("x" * m, (1,), False, (1,)) for n in (1, 0)}))
            collector.score()
        collector.ended(1, plan[1], ChunkOutput({0: Completion("y", (1,), False, (1,))}))
        assert calls == [["p"] * 3]
        batches, _ = collector.gather({1})
    assert calls == [["p"] * 3, ["q"] * 2]
    assert [b.places for b in batches] == [((0, 1), (2, 1)), ((0, 0), (1, 0), (2, 0))]


def test_a_reward_that_cannot_tell_centers_apart_is_said(tmp_path):
    for options, warns in (
        ({}, True), ({"eval_funcs": [letters], "metric_for_best_model": "letters"}, False),
        ({"load_best_model_at_end": False}, False), ({"reward_batch": "member"}, False),
    ):  # fmt: skip
        notes = Notes()
        trainer(tmp_path, progress=notes, reward_funcs=rank,
                **{"reward_batch": "group", "load_best_model_at_end": True, **options})  # fmt: skip
        notes.stop()
        assert any("the same for every center" in text for text in notes.texts) == warns


def test_other_values_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="reward_batch must be one of any, group, member; got 'prompt'"):
        trainer(tmp_path, reward_batch="prompt")
