"""Several completions per member and prompt: who draws what, what reward functions see of it, and one reward of it."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import combinations

import numpy as np
import pytest

from runs import ROWS, Notes, journal_of, letters, plain, trained, trainer, weights
from seedtune.cli.main import main
from seedtune.data.prompts import PromptBatch
from seedtune.engines.base import Completion, Sampling
from seedtune.engines.hf.engine import HFEngine
from seedtune.errors import ConfigError, RewardError
from seedtune.es.aggregate import Aggregate
from seedtune.es.population import CENTER, Population
from seedtune.evaluation.evaluate import EvalSpec, evaluate
from seedtune.noise import spec
from seedtune.report import history, run_page
from seedtune.rewards.function import Reward
from seedtune.rewards.scorer import Scorer
from seedtune.rollout.rollouts import Rollouts, per_prompt
from seedtune.rollout.runner import LocalExecutor, RolloutRunner, RolloutSpec
from seedtune.training import factory
from seedtune.training.preflight import PAIRS
from tiny import tiny_llama
from tiny_engine import engine

LOWRANK = {"perturbation": "lowrank", "antithetic": True}
SAMPLED = {"num_generations": 3, "temperature": 1.0, "drift_samples": 0, **LOWRANK}
CALLS = []


def spread(completions, group, **kwargs):
    """How many different texts there are in the group: means something in whole groups only."""
    CALLS.append(list(group))
    texts = defaultdict(set)
    for c, g in zip(completions, group, strict=True):
        texts[g].add(c)
    return [float(len(texts[g])) for g in group]


@pytest.fixture(autouse=True)
def calls():
    CALLS.clear()
    return CALLS


def rows_of(folder, name):
    return [json.loads(line) for line in (folder / "completions" / f"{name}.jsonl").read_text().splitlines()]


# --- who draws what ---------------------------------------------------------------------------------------------------


def drawn(chunk_size, rank=None, pairs=2, iteration=1, per_member=None, sigma=1e-9):
    """Completions [member][row] of members that hardly differ from the center."""
    e = engine(sigma=sigma, rank=rank, scope="linear")
    prompts = e.encode([row["prompt"] for row in ROWS], 8)
    batch = PromptBatch((4, 7, 1, 0), tuple(prompts), {"target": [row["target"] for row in ROWS]})
    how = RolloutSpec(Sampling(8, temperature=1.0, rows_at_once=5), chunk_size, 3, per_member, num_generations=3)
    runner = RolloutRunner(LocalExecutor(e), how, mixes_members=e.mixes_members)
    members = Population(2 * pairs, antithetic=True).ask(iteration) if pairs else [CENTER]
    with Scorer([Reward(letters)], workers=0, timeout=60) as scorer:
        found = runner.run(members, batch, scorer, iteration, {}, lambda *_: None)
    return [[c and c.ids for c in row] for row in found.completions]


@pytest.mark.parametrize("rank", [None, 1])
def test_a_pair_draws_the_same_numbers_whatever_the_chunks(rank):
    first = drawn(64, rank)
    assert first[0] == first[1]
    assert first[2] == first[3]
    assert all(len({*first[0][p : p + 3], *first[2][p : p + 3]}) == 6 for p in (0, 3, 6, 9))  # samples, pairs: others
    assert drawn(7, rank) == first
    assert drawn(64, rank, iteration=2)[0] != first[0]
    assert drawn(64, rank, pairs=0)[0] not in (first[0], first[2])
    some = drawn(64, rank, per_member=1)
    assert some[0] == [*first[0][:3], *[None] * 9]
    assert some[2] == [*[None] * 3, *first[2][3:6], *[None] * 6]


def test_seeds_are_of_the_noise_stream():
    seeds = spec.sample_seeds(2**63 + 5, 7, np.array([-1, 0, 0]), np.array([9, 9, 2]), 300)
    counter = np.array([7, 1, 2, spec.Tag.SAMPLES + 256 * 299], dtype=np.uint32)
    low, high = (int(w) for w in spec.philox4x32(counter, spec.run_key(2**63 + 5))[:2])
    assert seeds[2, 299] == (high << 32 | low) >> 1
    assert len(np.unique(seeds)) == 900
    assert (seeds >= 0).all()


# --- what reward functions see ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [2, 5, 64])
def test_a_call_has_whole_groups(tmp_path, calls, chunk):
    trainer(tmp_path, reward_funcs=spread, max_steps=1, chunk_size=chunk, **SAMPLED).train()
    assert sum(map(len, calls)) == (4 + 1 + 1) * 4 * 3
    for call in calls:
        assert call == [n for n in range(len(call) // 3) for _ in range(3)]


def test_with_all_completions_of_a_prompt_those_of_a_member_are_neighbors(tmp_path, calls):
    seen = []

    def look(prompts, completions, group, **kwargs):
        seen.append((prompts, group))
        return [float(len(c)) for c in completions]

    trainer(tmp_path, reward_funcs=look, max_steps=1, eval_steps=0, reward_batch="group", **SAMPLED).train()
    groups = [(len({*prompts}), group) for prompts, group in seen]
    assert groups.count((1, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3])) == 4
    assert groups.count((1, [0, 0, 0])) == 8  # two evaluations


def test_functions_that_do_not_ask_are_called_as_before(tmp_path):
    def alone(completions, target, group=None, **kwargs):
        assert group is None
        assert not {"completion_logprobs", "completion_kl_uniform", "group"} & set(kwargs)
        return letters(completions, target)

    alone.__name__ = "letters"
    how = {"temperature": 1.0, "max_steps": 2}
    trainer(tmp_path, output_dir=str(tmp_path / "a"), reward_funcs=alone, **how).train()
    trainer(tmp_path, output_dir=str(tmp_path / "b"), **how).train()
    assert journal_of(tmp_path, "a") == journal_of(tmp_path, "b")
    header = json.loads(journal_of(tmp_path, "b").splitlines()[0])["config"]
    assert not {"num_generations", "aggregate", "aggregate_k"} & set(header)  # the bytes of before there were any


def test_a_column_called_group_stays_one(tmp_path):
    rows = [{**row, "group": n} for n, row in enumerate(ROWS)]

    def of_column(completions, group, **kwargs):
        return [float(g) for g in group]

    t = trainer(tmp_path, rows=rows, reward_funcs=of_column, max_steps=1)
    t.train()
    assert t.run.evaluations[0]["eval/reward"] == 1.5
    with pytest.raises(RewardError, match="column 'group', a name that the trainer gives"):
        trainer(tmp_path, rows=rows, reward_funcs=of_column, **SAMPLED)


def test_what_is_asked_of_tokens_is_measured_where_it_is_asked(tmp_path, monkeypatch):
    asked, seen = [], []
    generate = HFEngine.generate

    def watch(self, prompts, sampling, seed, on_completions=None):
        asked.append((self._members[0] == CENTER, sampling.logprobs, sampling.kl_uniform))
        return generate(self, prompts, sampling, seed, on_completions)

    def certainty(completion_ids, completion_kl_uniform, **kwargs):
        seen.extend(zip(completion_ids, completion_kl_uniform, strict=True))
        return [sum(kl) / len(kl) for kl in completion_kl_uniform]

    def likelihood(completion_ids, completion_logprobs, **kwargs):
        seen.extend(zip(completion_ids, completion_logprobs, strict=True))
        assert all(max(lp) <= 0 for lp in completion_logprobs)
        return [sum(lp) for lp in completion_logprobs]

    monkeypatch.setattr(HFEngine, "generate", watch)
    trainer(tmp_path, reward_funcs=likelihood, eval_funcs=certainty, max_steps=1, **SAMPLED).train()
    assert {*asked} == {(True, True, True), (False, True, False)}
    assert {len(values) - len(ids) for ids, values in seen} <= {0, 1}
    trainer(tmp_path, output_dir=str(tmp_path / "b"), max_steps=1, **SAMPLED).train()
    assert asked[-1] == (True, False, False)


def test_the_failing_group_is_shown(tmp_path):
    def fails(completions, group, **kwargs):
        counts = {g: group.count(g) for g in group}
        assert {*counts.values()} == {3}, "torn apart"
        raise ValueError("no")

    with pytest.raises(RewardError, match="ValueError: no"):
        trainer(tmp_path, reward_funcs=fails, max_steps=1, **SAMPLED).train()


# --- one reward of several --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"aggregate": "mean"}, lambda rewards: sum(rewards) / len(rewards)),
        ({"aggregate": "max"}, max),
        ({"aggregate": "pass_at_k", "aggregate_k": 2}, lambda r: sum(map(max, combinations(r, 2))) / 3),
    ],
    ids=["mean", "max", "pass_at_k"],
)
def test_members_and_the_center_earn_what_is_made_of_their_samples(tmp_path, options, expected):
    t = trainer(tmp_path, reward_funcs=[plain, letters], eval_funcs=[len_of], max_steps=1, log_completions=True,
                reward_weights=[1.0, 0.5], **SAMPLED, **options)  # fmt: skip
    t.train()
    earned = defaultdict(lambda: defaultdict(list))
    for row in rows_of(tmp_path / "run", "train-1"):
        assert row["reward"] == pytest.approx(row["plain"] + 0.5 * row["letters"])
        earned[row["member"]][row["prompt_index"]].append(row)
    for member, reward in enumerate(t.run.journal.iterations[0].rewards_M):
        prompts = earned[member].values()
        assert [[row["sample"] for row in samples] for samples in prompts] == [[0, 1, 2]] * 4
        each = [expected([row["reward"] for row in samples]) for samples in prompts]
        assert [samples[0]["prompt_reward"] for samples in prompts] == pytest.approx(each)
        assert reward == pytest.approx(sum(each) / 4)
    rows = rows_of(tmp_path / "run", "eval-1")
    last = t.run.evaluations[-1]
    assert last["eval/reward"] == pytest.approx(np.mean([row["reward"] for row in per_prompt(rows)]))
    assert last["eval/len_of"] == pytest.approx(np.mean([row["len_of"] for row in rows]))
    assert [row["len_of"] for row in per_prompt(rows)] == pytest.approx(
        [np.mean([row["len_of"] for row in rows[n : n + 3]]) for n in range(0, 12, 3)]
    )
    best = rows_of(tmp_path / "run", f"eval-{t.best.found.step}")
    assert t.best.found.values_P == pytest.approx([row["prompt_reward"] for row in best[::3]])
    assert t.state.train_batch_size == 4 * 4 * 3
    line = next(line for line in t.run.history if "num_tokens" in line)
    prompt_tokens = sum(len(row["prompt"]) for row in ROWS) * 4 * 3
    assert line["num_tokens"] == prompt_tokens + sum(row["tokens"] for row in rows_of(tmp_path / "run", "train-1"))


def len_of(completions, **kwargs):
    return [float(len(c)) for c in completions]


def test_the_majority_votes_by_its_answers():
    texts = [
        "so <answer>4.</answer>",
        r"\boxed{\frac{1}{2}}",
        "#### Sum\nadd\n#### **4**",
        r"\frac{1}{2}",
        "<answer>x</answer> 4",
    ]
    rewards = np.array([[[[1.0, 0.0, 1.0, 0.0, 0.25]]]])
    completions = [[Completion((1,), text, False) for text in texts]]
    found = Rollouts(None, ("r",), completions, rewards, {}, {}, {}, aggregate=Aggregate("majority"))
    assert found.total_M_P([2.0]) == 2.0  # two say 4, two say a half; 4 came first


def test_one_row_per_prompt_of_rows_of_any_age():
    old = [{"prompt_index": 0, "reward": 1.0}, {"prompt_index": 0, "reward": 2.0}]
    assert per_prompt(old) == old
    new = [
        {"prompt_index": 3, "completion": c, "reward": r, "sample": n, "prompt_reward": 9.0, "gold": g, "note": c}
        for n, (c, r, g) in enumerate([("a", 1.0, None), ("b", None, 2.0), ("c", 5.0, 4.0)])
    ]
    assert per_prompt(new) == [{**new[0], "reward": 9.0, "gold": 3.0}]


# --- a run is its journal ---------------------------------------------------------------------------------------------


def test_a_run_is_the_same_wherever_it_is_scored_resumed_and_replayed(tmp_path):
    def certain(completions, group, completion_logprobs, **kwargs):  # of its own: workers need not import this module
        firsts = {g: c for c, g in reversed([*zip(completions, group, strict=True)])}
        return [(c == firsts[g]) + sum(lp) for c, g, lp in zip(completions, group, completion_logprobs, strict=True)]

    how = {"reward_funcs": certain, "aggregate": "pass_at_k", "aggregate_k": 2, "chunk_size": 8, **SAMPLED}
    whole = trained(tmp_path, "whole", reward_workers=1, reward_timeout=600, **how)
    trained(tmp_path, "half", **{**how, "max_steps": 2})
    base = str(tmp_path / "base")
    t = trainer(tmp_path, model=base, output_dir=str(tmp_path / "half"), **how)
    t.train(resume_from_checkpoint=True)
    assert journal_of(tmp_path, "whole") == journal_of(tmp_path, "half")
    assert main(["replay", str(whole), "--out", str(tmp_path / "replayed")]) == 0
    assert weights(tmp_path / "replayed") == weights(whole / "checkpoint-3") == weights(tmp_path / "half/checkpoint-3")
    with pytest.raises(Exception, match="num_generations = 3 and would go on with 1"):
        trainer(tmp_path, model=base, output_dir=str(tmp_path / "half"), reward_funcs=len_of, chunk_size=8, **LOWRANK,
                temperature=1.0, drift_samples=0, max_steps=4).train(resume_from_checkpoint=True)  # fmt: skip
    said = " ".join(run_page.context(history.read(whole))["lead"])
    assert "144 completions" in said  # 3 iterations of 4 members, 4 prompts, 3 samples
    assert "On 4 prompts" in said


# --- elsewhere --------------------------------------------------------------------------------------------------------


def test_samples_of_an_evaluation_are_one_group(calls):
    how = EvalSpec(max_completion_length=8, samples=3, ks=(1, 3), reward_workers=0, success=3.0)
    found = evaluate(engine(), how, [{"prompt": "one"}, {"prompt": "two"}], [spread])
    assert calls == [[0, 0, 0, 1, 1, 1]]
    assert [row["reward"] for row in found.greedy] == [None, None]  # one completion says nothing
    assert [row["sample"] for row in found.sampled] == [0, 1, 2] * 2
    assert (
        found.estimates["pass@1"].mean == found.estimates["pass@3"].mean == found.estimates["sampled/reward"].mean / 3
    )
    with pytest.raises(RewardError, match="seedtune eval: --samples"):
        evaluate(engine(), EvalSpec(), [{"prompt": "one"}], [spread])


def test_preflight_draws_as_the_run_would(tmp_path, calls):
    found = trainer(tmp_path, reward_funcs=spread, **SAMPLED).preflight()
    assert sum(map(len, calls)) == found.completions == 3 * 4 * (2 * PAIRS + 1)


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_generations": 4}, "num_generations is 4, and at temperature 0 .* set temperature"),
        ({"num_generations": 0}, "num_generations must be at least 1"),
        ({"aggregate": "max"}, "aggregate: max makes one reward of several .* num_generations is 1"),
        ({**SAMPLED, "aggregate": "median"}, "aggregate must be one of mean, max, pass_at_k, majority; got 'median'"),
        ({**SAMPLED, "aggregate": "pass_at_k"}, "needs its k: set aggregate_k"),
        ({**SAMPLED, "aggregate_k": 2}, "aggregate_k is for aggregate: pass_at_k"),
        ({**SAMPLED, "aggregate": "pass_at_k", "aggregate_k": 4}, "the best of so many cannot be told from 3"),
        ({**SAMPLED, "reward_funcs": "log_likelihood"}, "own completions are read, and none are drawn"),
        ({"num_generations_eval": 2}, "an evaluation draws num_generations"),
    ],
    ids=str,
)
def test_settings_that_cannot_be(tmp_path, options, said):
    with pytest.raises(ConfigError, match=said):
        trainer(tmp_path, **options)


def test_one_completion_where_groups_are_needed(tmp_path):
    with pytest.raises(RewardError, match=r"'spread' compares completions of one prompt.* set num_generations"):
        trainer(tmp_path, reward_funcs=spread)
    with pytest.raises(RewardError, match="set num_generations"):
        trainer(tmp_path, eval_funcs=spread)


def test_what_an_engine_cannot_say_of_tokens(tmp_path, monkeypatch):
    def certain(completion_kl_uniform, **kwargs):
        return []

    def likely(completion_logprobs, **kwargs):
        return []

    monkeypatch.setattr(factory, "driver", lambda model, tokenizer, args: engine(tiny_llama()))
    with pytest.raises(ConfigError, match=r"'certain' asks for completion_kl_uniform.* use engine: hf"):
        trainer(tmp_path, reward_funcs=certain, engine="vllm", model="x")
    monkeypatch.setattr(HFEngine, "decoder", None)
    with pytest.raises(ConfigError, match="'likely' asks for completion_logprobs, which needs a model that caches"):
        trainer(tmp_path, reward_funcs=likely)


def test_a_reward_that_cannot_tell_centers_apart_can_with_samples(tmp_path):
    notes = Notes()
    how = {"reward_batch": "group", "load_best_model_at_end": True, **SAMPLED}
    trainer(tmp_path, progress=notes, reward_funcs=spread, **how)
    notes.stop()
    assert not any("the same for every center" in text for text in notes.texts)
