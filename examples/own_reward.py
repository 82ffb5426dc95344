"""A reward of your own, and a gold metric beside it, in one file.

    python examples/own_reward.py

The model is rewarded for beginning with the answer. What is meant is that it is right: that is measured on the center
at every evaluation, and never optimized.
"""

from __future__ import annotations

from typing import Any

from seedtune import ESConfig, ESTrainer

QUESTIONS = {
    "Which animal barks?": "dog",
    "Which animal says moo?": "cow",
    "Which animal has a trunk?": "elephant",
    "Which animal hunts mice in a house?": "cat",
    "Which animal has black and white stripes?": "zebra",
    "Which animal carries its house on its back?": "snail",
}


def texts(completions: list[Any]) -> list[str]:
    return [completion[0]["content"].lower() for completion in completions]


def begins_with_the_animal(completions: list[Any], animal: list[str], **_: Any) -> list[float]:
    """1 when the completion begins with the animal, less the later it is named, 0 when it is not named."""
    places = [text.find(name) for text, name in zip(texts(completions), animal, strict=True)]
    return [0.0 if place < 0 else 1 / (1 + place / 10) for place in places]


def names_one_animal(completions: list[Any], animal: list[str], **_: Any) -> list[float]:
    """Gold metric: the right animal, and no other of the list."""
    others = set(QUESTIONS.values())
    return [
        float({name for name in others if name in text} == {right})
        for text, right in zip(texts(completions), animal, strict=True)
    ]


if __name__ == "__main__":
    trainer = ESTrainer(
        model="smollm2-135m-instruct",
        reward_funcs=begins_with_the_animal,
        eval_funcs=names_one_animal,
        args=ESConfig(
            output_dir="runs/own-reward-example",
            max_steps=8,
            eval_steps=4,
            perturbation="lowrank",
            population_size=16,
            antithetic=True,
            sigma=0.01,
            max_completion_length=24,
            stop_at=["eval/names_one_animal < 0.2"],
        ),
        train_dataset=[
            {"prompt": [{"role": "user", "content": question}], "animal": animal}
            for question, animal in QUESTIONS.items()
        ],
    )
    print(trainer.train())
