"""Rewards that need no labels: how certain a model is of what it says. More is more certain.

All but `self_certainty` compare the completions of a group: those of one member for one prompt. They take `equivalence`
and `answer` (see `answer_groups`). A group of one says nothing, and is left out; a completion without an answer agrees
with nothing. They can be hacked: a model that says the same whatever it is asked is certain. That is said in
docs/guides/unsupervised.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .answers import AnswerGroup, answer_groups

Floats = NDArray[np.float64]
Rewards = list[float | None]


def semantic_entropy(
    *, group: Sequence[int], completion_logprobs: Sequence[Sequence[float]], per_token: bool = True, **call: Any
) -> Rewards:
    """Minus the entropy of what the completions of a group mean, in nats: 0 when all mean the same.

    Farquhar et al. (Nature 2024, doi 10.1038/s41586-024-07421-0, Methods): with C_i the clusters of completions that
    mean the same, P(C_i) = sum over s in C_i of p(s), made to add up to 1 (eq. 2), and SE = -sum_i P(C_i) log P(C_i)
    (eq. 5, their estimator). `per_token`: p(s) is the geometric mean of its tokens' probabilities (their "length
    normalization"), else their product, of which long completions have next to nothing.
    """

    def score(g: AnswerGroup) -> Rewards:
        weights = _weights([log_likelihood(completion_logprobs[n], per_token) for n in g.places])
        return [_negative_entropy(g.clusters, weights)] * len(g.places)

    return _scored(group, answer_groups(group=group, **call), score)


def discrete_semantic_entropy(*, group: Sequence[int], **call: Any) -> Rewards:
    """`semantic_entropy` without likelihoods: P(C_i) of eq. 5 is the share of completions in the cluster (Farquhar et
    al., Nature 2024, doi 10.1038/s41586-024-07421-0, Methods, "Computing the semantic entropy").
    """

    def score(g: AnswerGroup) -> Rewards:
        return [_negative_entropy(g.clusters, _weights([0.0] * len(g.places)))] * len(g.places)

    return _scored(group, answer_groups(group=group, **call), score)


def semantic_density(*, group: Sequence[int], completion_logprobs: Sequence[Sequence[float]], **call: Any) -> Rewards:
    """How much of the group's likelihood is near in meaning to a completion, from 0 to 1; each has its own.

    Qiu and Miikkulainen (NeurIPS 2024, arXiv 2405.13845), by their formula of semantic density: SD(y) = sum_i w_i K(y,
    y_i) / sum_i w_i over the different texts y_i of the group, where w_i = p(y_i)^(1 / length) and K = 1 - E|v - v_i|^2
    where that is at most 1, else 0: Epanechnikov's kernel without its constant. The squared distance of two meanings is
    the equivalence's.
    """

    def score(g: AnswerGroup) -> Rewards:
        unique = [g.texts.index(text) for text in dict.fromkeys(g.texts)]
        weights = _weights([log_likelihood(completion_logprobs[g.places[n]]) for n in unique])
        kernel_U_U = np.array([[max(1 - g.squared_distance(n, m), 0.0) for m in unique] for n in unique])
        density = dict(zip((g.texts[n] for n in unique), kernel_U_U @ weights, strict=True))
        return [float(density[text]) for text in g.texts]

    return _scored(group, answer_groups(group=group, **call), score)


def majority(*, group: Sequence[int], **call: Any) -> Rewards:
    """1 for completions that answer what most of their group do, else 0: R(y_i, y) of TTRL (Zuo et al., arXiv
    2504.16084, section 2.2, eq. 3), where the majority's answer y is the label. Of several answers that are
    as frequent the one that came first counts.
    """

    def score(g: AnswerGroup) -> Rewards:
        answered = [cluster for cluster, key in zip(g.clusters, g.keys, strict=True) if key]
        label = max(dict.fromkeys(answered), key=answered.count, default=None)  # the first of the most frequent
        return [float(cluster == label) for cluster in g.clusters]

    return _scored(group, answer_groups(group=group, **call), score)


def self_certainty(*, completion_kl_uniform: Sequence[Sequence[float]], **_: Any) -> Rewards:
    """KL of the next token's distribution from the uniform one, KL(U || p), in nats, mean over a completion's tokens.

    Kang et al. (NeurIPS 2025, arXiv 2502.18581), by their formula of self-certainty (the one of KL, not of cross
    entropy): -1 / (n V) sum_i sum_j log(V p(j | x, y_<i)), n tokens, V words in the vocabulary. A completion without
    tokens is left out.
    """
    return [float(np.mean(kl)) if len(kl) else None for kl in completion_kl_uniform]


def log_likelihood(logprobs: Sequence[float], per_token: bool = True) -> float:
    """Of a completion, the mean or the sum of its tokens'; 0 where there are none."""
    return float(np.mean(logprobs) if per_token else np.sum(logprobs)) if len(logprobs) else 0.0


def _scored(group: Sequence[int], groups: Iterable[AnswerGroup], score: Callable[[AnswerGroup], Rewards]) -> Rewards:
    """Each group's rewards, where its completions stand in the call; None for groups of one."""
    rewards: Rewards = [None] * len(group)
    for g in groups:
        for place, reward in zip(g.places, score(g), strict=True) if len(g.places) > 1 else []:
            rewards[place] = reward
    return rewards


def _weights(log_likelihoods: Sequence[float]) -> Floats:
    """exp, made to add up to 1; by differences, as likelihoods themselves underflow. All impossible: all alike."""
    logs = np.asarray(log_likelihoods, dtype=np.float64)
    if np.isneginf(logs).all():
        logs = np.zeros_like(logs)
    likelihoods = np.exp(logs - logs.max())
    weights: Floats = likelihoods / likelihoods.sum()
    return weights


def _negative_entropy(clusters: Sequence[int], weights: Floats) -> float:
    """sum p log p over clusters, in nats, where 0 log 0 = 0; p: the sum of a cluster's weights."""
    p = np.bincount(clusters, weights).astype(np.float64)
    p = p[p > 0]
    return float((p * np.log(p)).sum()) + 0.0
