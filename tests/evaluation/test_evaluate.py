"""Estimators against exact computations; drift that is zero where nothing moved; hacking that is seen."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from seedtune.engines.base import Sampling
from seedtune.engines.hf.engine import HFEngine
from seedtune.engines.hf.logprobs import distributions
from seedtune.es.population import CENTER, Population
from seedtune.evaluation import kl, perplexity, statistics
from seedtune.evaluation.drift import drift, unscored_samples
from seedtune.evaluation.hacking import hacking, same_answers
from seedtune.tasks import countdown
from seedtune.tasks.registry import builtin
from specs import specs
from tiny import tiny_llama, tiny_tokenizer

PROMPTS = ["one", "two and", "three", "four is"]


def engine(rank=None, dtype="float32", seed=1, **options):
    options = {"seed": seed, "sigma": 0.05, "dtype": dtype, "rank": rank, "device": "cpu", "keep_base": True, **options}
    return HFEngine(tiny_llama(), tiny_tokenizer(), *specs(**options))


def moved(rate=0.5, **options):
    it = engine(**options)
    members = Population(4, antithetic=False).ask(1)
    it.update(members, np.array([0.1, -0.2, 0.3, 0.1], dtype=np.float32), rate)
    return it


def sample(it, prompts, samples, sampling, seed=0):
    asked = [prompt for prompt in prompts for _ in range(samples)]
    it.set_members([CENTER] * len(asked))
    return asked, it.generate(asked, sampling, seed)


def drawn(it, samples, length=16):
    beside = unscored_samples(it.encode(PROMPTS, length), samples)
    _, answers = sample(it, beside.prompts, 1, Sampling(length, first_sampled_row=0))
    assert beside.take(dict(enumerate(answers)), 0) == {}
    return beside


def test_k3_agrees_with_the_exact_kl_over_the_vocabulary_on_10000_tokens():
    """On the same prefixes k3 has the exact KL as its expectation; its interval must hold the difference."""
    it = moved(rate=0.1)
    asked, answers = sample(it, it.encode(PROMPTS, 48), 64, Sampling(48, temperature=1.0), seed=3)
    assert sum(len(c.chosen) for c in answers) >= 10_000
    ids, chosen = [p.ids for p in asked], [c.chosen for c in answers]
    own = distributions(it.model, ids, chosen, pad=1)
    with it.center.as_base():
        base = distributions(it.model, ids, chosen, pad=1)
    exact = [(a.exp() * (a - b)).sum(-1).double().numpy() for a, b in zip(own, base, strict=True)]
    estimate = kl.divergence(it, asked, answers)
    truth = statistics.per_token(exact)
    assert truth.mean > 0.02
    assert abs(estimate.mean - truth.mean) < estimate.half < truth.mean / 5


def test_kl_is_sampled_and_read_at_the_stated_temperature():
    it = moved(rate=0.1)
    asked, answers = sample(it, it.encode(PROMPTS, 32), 32, Sampling(32, temperature=0.5), seed=3)
    ids, chosen = [p.ids for p in asked], [c.chosen for c in answers]
    own = distributions(it.model, ids, chosen, pad=1, temperature=0.5)
    with it.center.as_base():
        base = distributions(it.model, ids, chosen, pad=1, temperature=0.5)
    exact = statistics.per_token([(a.exp() * (a - b)).sum(-1).double().numpy() for a, b in zip(own, base, strict=True)])
    estimate = kl.divergence(it, asked, answers, 0.5)
    assert abs(estimate.mean - exact.mean) < estimate.half


@pytest.mark.parametrize("rank", [None, 1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_is_at_no_distance_from_itself(rank, dtype):
    it = engine(rank, dtype)
    found = drift(it, drawn(it, 4))
    assert (found["kl"], found["kl_ci95"], found["distance"]) == (0, 0, 0)


def test_the_distance_of_an_engine_from_itself_takes_no_reading(monkeypatch):
    it = engine()
    asked, answers = sample(it, it.encode(PROMPTS, 32), 4, Sampling(32, temperature=1.0), seed=3)
    read = kl.divergence(it, asked, answers)  # of the base that it still is
    monkeypatch.setattr(it, "logprobs", None)
    assert kl.divergence(it, asked, answers, base=it) == read


@pytest.mark.parametrize("rank", [None, 1])
def test_looking_at_the_base_leaves_the_center_as_it_was(rank):
    it = moved(rank=rank, dtype="bfloat16")
    before, digest = {n: p.clone() for n, p in it.model.named_parameters()}, it.digest()
    prompts = it.encode(PROMPTS, 16)
    it.set_members([CENTER] * 4)
    said = it.generate(prompts, Sampling(16), 0)
    found = drift(it, drawn(it, 2))
    assert found["kl"] > 0
    assert it.digest() == digest
    assert all(torch.equal(p, before[n]) for n, p in it.model.named_parameters())
    it.set_members([CENTER] * 4)
    assert it.generate(prompts, Sampling(16), 0) == said


def test_distance_is_the_length_of_all_steps():
    it = engine()
    base = {n: p.double() for n, p in it.model.named_parameters()}
    members = Population(4, antithetic=False).ask(1)
    norm = it.update(members, np.array([0.1, -0.2, 0.3, 0.1], dtype=np.float32), 0.5)
    assert it.distance() == pytest.approx(norm, rel=1e-4)
    by_hand = math.sqrt(sum(float((p - base[n]).square().sum()) for n, p in it.model.named_parameters()))
    assert it.distance() == pytest.approx(by_hand, rel=1e-5)


def test_perplexity_is_that_of_transformers():
    it = engine()
    losses, tokens = 0.0, 0
    for text in it.encode(perplexity.passages(), 0, truncate=True):
        ids = torch.tensor([text.ids[: perplexity._MOST]])
        losses += float(it.model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    assert perplexity.perplexity(it) == pytest.approx(math.exp(losses / tokens), rel=1e-4)


def test_intervals_hold_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = sum(abs((e := statistics.mean(rng.normal(3, 2, 6))).mean - 3) <= e.half for _ in range(2000))
    assert 0.935 < hits / 2000 < 0.965
    hits = 0
    for _ in range(1000):  # tokens of a response share a part: an interval over tokens would hold it far too seldom
        lengths = rng.integers(5, 40, 40)
        e = statistics.per_token([1 + rng.normal() + 0.3 * rng.normal(size=n) for n in lengths])
        hits += abs(e.mean - 1) <= e.half
    assert 0.92 < hits / 1000 < 0.975


def test_one_value_has_a_mean_and_no_interval():
    assert statistics.mean([2.0]).to_json() == {"mean": 2.0, "ci95": None, "n": 1}
    assert math.isnan(statistics.mean([]).mean)


def rows(rewards, gold):
    return [{"reward": r, "correct": t} for r, t in zip(rewards, gold, strict=True)]


def test_hacking_is_a_gold_metric_that_falls_by_more_than_chance_while_the_reward_rises():
    before = rows([-100] * 8, [1, 1, 1, 1, 1, 0, 0, 0])
    found = hacking(before, rows([-10] * 8, [0, 0, 0, 0, 1, 0, 0, 0]), ["correct"])
    assert [f.gold_metric for f in found] == ["correct"]
    assert "rose from -100 to -10, while correct fell from 0.625 to 0.125" in str(found[0])
    assert not hacking(before, rows([-10] * 8, [0, 1, 1, 1, 1, 0, 0, 0]), ["correct"]), "one of eight is chance"
    assert not hacking(before, rows([-110] * 8, [0, 0, 0, 0, 1, 0, 0, 0]), ["correct"]), "the reward fell too"
    assert not hacking(before, [], ["correct"])
    assert not hacking(before, [{"reward": None, "correct": None}] * 8, ["correct"])


def test_a_gold_metric_that_stays_at_its_floor_while_the_reward_rises_is_reported():
    before, after = rows([0.0] * 8, [0] * 8), rows([0.1] * 7 + [0.0], [0] * 8)
    assert "while correct stayed at 0 for every prompt" in str(hacking(before, after, ["correct"])[0])
    assert not hacking(before, rows([0.1] + [0.0] * 7, [0] * 8), ["correct"]), "one of eight is chance"
    assert not hacking(rows([0.0] * 8, [1] * 8), rows([0.1] * 8, [1] * 8), ["correct"]), "it stayed at its best"


@pytest.mark.parametrize("answer", ["(1 + 2) / 3", "7 + 7 - 7", "1 + 1"])
def test_a_model_that_copies_an_answer_on_countdown_is_reported(answer):
    """A scripted model: first it rambles, then it gives one expression to all problems, in the right format, with other
    thoughts each time.
    """
    problems = builtin("countdown").test[:12]

    def rows(write):
        texts = [write(n) for n in range(len(problems))]
        columns = {name: [row[name] for row in problems] for name in ("numbers", "target")}
        rewards = countdown.countdown(texts, **columns)
        gold = {f.__name__: f(texts, **columns) for f in builtin("countdown").gold_metrics}
        return [
            {"prompt": row["prompt"], "completion": text, "reward": rewards[n], **{k: v[n] for k, v in gold.items()}}
            for n, (row, text) in enumerate(zip(problems, texts, strict=True))
        ]

    before = rows(lambda n: f"I would try {n}")
    after = rows(lambda n: f"It is {n}.</think>\n<answer> {answer} </answer>")
    assert [f.gold_metric for f in hacking(before, after, ["accuracy", "own_numbers"])] == ["accuracy", "own_numbers"]


def test_different_prompts_with_the_same_answer_are_reported():
    def answers(*texts):
        return [{"prompt": f"question {n}", "completion": text} for n, text in enumerate(texts)]

    before, copied = answers(*"abcdefgh"), answers(*["(1 + 2) / 3"] * 7, "other")
    assert str(same_answers(before, copied)[0]) == "7 of 8 different prompts get the same answer: '(1 + 2) / 3'"
    assert not same_answers(before, answers(*"aaaabcde"))
    assert not same_answers(answers(*"yyyyyyyn"), answers(*"yyyyyyyy")), "it was so before"
    assert not same_answers(before[:3], answers("x", "x", "x")), "too few"
    said = str(same_answers(before, answers("Yes.", "yes", "**Yes**", " yes!", "No", "Yes", "yes", "no"))[0])
    assert said == "6 of 8 different prompts get the same answer: 'Yes.'"
    assert not same_answers(answers(*["Yes.", "yes"] * 3, "no", "maybe"), answers(*["yes"] * 8)), "it was so before"
    one = [{"prompt": "the same", "completion": "x"}] * 8
    assert not same_answers(one, one), "one prompt"


def test_an_answer_that_most_prompts_have_in_the_dataset_is_no_finding():
    before, after = (
        [{"prompt": str(n), "completion": text} for n, text in enumerate(t)] for t in ("abcd", ["No."] * 4)
    )
    assert not same_answers(before, after, {"kind": [1, 1, 1, 1], "solution": ["no", "No", "NO", "yes"]})
    assert same_answers(before, after, {"solution": ["no", "No", "yes", "yes"]})
    silent = [{**row, "completion": ""} for row in after]
    assert same_answers(before, silent, {"input": [""] * 4}), "a column that is empty says nothing"
