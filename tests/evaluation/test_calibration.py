"""Brier score and expected calibration error of completions' confidences."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from seedtune import ESConfig
from seedtune.evaluation.calibration import calibration_metrics, expected_calibration_error
from seedtune.evaluation.evaluate import EvalSpec, evaluate
from seedtune.training import factory
from tiny import save_tiny


def rows(*pairs):
    return [{"calibration/confidence": q, "calibration/correct": y} for q, y in pairs]


def test_expected_calibration_error_by_hand():
    """Bins (0.8, 0.9]: 0.85 and 0.9, one of two right, |0.5 - 0.875|; (0.1, 0.2]: 0.2, wrong; (0, 0.1]: 0, right."""
    q, y = np.array([0.85, 0.9, 0.2, 0.0]), np.array([1.0, 0.0, 0.0, 1.0])
    assert expected_calibration_error(q, y) == pytest.approx(2 / 4 * 0.375 + 1 / 4 * 0.2 + 1 / 4 * 1.0)
    assert expected_calibration_error(np.full(4, 0.75), np.array([1.0, 1, 1, 0])) == 0


def test_expected_calibration_error_agrees_with_its_definition():
    rng = random.Random(1)
    for _ in range(20):
        q = [rng.choice([rng.random(), 0.0, 0.1, 0.3, 1.0]) for _ in range(30)]
        y = [float(rng.random() < p) for p in q]
        total = 0.0
        for b in range(10):
            inside = [n for n in range(30) if b / 10 < q[n] <= (b + 1) / 10 or (b == 0 and q[n] == 0)]
            if inside:
                accuracy, confidence = (sum(v[n] for n in inside) / len(inside) for v in (y, q))
                total += len(inside) / 30 * abs(accuracy - confidence)
        assert expected_calibration_error(np.array(q), np.array(y)) == pytest.approx(total)


def test_what_an_evaluation_tells():
    found = calibration_metrics(rows((0.8, 1.0), (0.6, 0.0), (None, 1.0), (1.0, 1.0)))
    means = {name: estimate.mean for name, estimate in found.items()}
    assert means == {
        "calibration/accuracy": 0.75,
        "calibration/stated": 0.75,
        "calibration/brier": pytest.approx((0.04 + 0.36) / 3),
        "calibration/expected_calibration_error": pytest.approx((0.2 + 0.6) / 3),
    }
    assert set(calibration_metrics(rows((None, 0.0)))) == {"calibration/accuracy", "calibration/stated"}
    assert calibration_metrics([{"completion": "x"}]) == {}


def test_samples_are_measured_as_greedy_completions_are(tmp_path):
    """A reward that compares samples: known of samples alone. One that reads a confidence: of both."""
    engine = factory.inference_engine(save_tiny(tmp_path), ESConfig(dtype="float32", device="cpu"))
    questions = [{"prompt": p, "solution": "x"} for p in ("one", "two")]
    spec = EvalSpec(max_completion_length=4, samples=3, reward_workers=0)
    found = evaluate(engine, spec, questions, ["majority", "calibration"]).estimates
    assert math.isnan(found["majority"].mean)
    assert 0 < found["sampled/majority"].mean <= 1
    for name in ("calibration/accuracy", "calibration/stated", "completions/diversity"):
        assert 0 <= found[name].mean <= 1
        assert 0 <= found[f"sampled/{name}"].mean <= 1
        assert math.isnan(found[f"sampled/{name}"].half)
