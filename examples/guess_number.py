"""A model learns to find a number by feedback, over several turns: an environment is a class whose methods are tools.

    python examples/guess_number.py

The same class works with TRL's GRPOTrainer: `environment_factory=GuessNumber`. There is no dataset and no reward
function: `reset` begins an episode, with random numbers that are seeded from the run, and `get_reward` ends it.
"""

from __future__ import annotations

import random
from typing import Any

from seedtune import ESConfig, ESTrainer

LARGEST, TRIES = 8, 3


class GuessNumber:
    """A secret number from 1 to LARGEST."""

    def reset(self, **row: Any) -> None:
        self.secret, self.tries, self.found = random.randint(1, LARGEST), 0, False

    def guess(self, number: int) -> str:
        """Guess the secret number.

        Args:
            number: the guess
        """
        self.tries += 1
        if number == self.secret:
            self.found = True
            return "Right."
        return "The secret number is larger." if number < self.secret else "The secret number is smaller."

    def get_reward(self) -> float:
        """1 for a number that was found within TRIES guesses."""
        return float(self.found and self.tries <= TRIES)


def example(secret: int, guesses: list[int]) -> list[dict[str, Any]]:
    """An episode in which the number is found."""
    game, messages = GuessNumber(), [{"role": "user", "content": TASK}]
    game.secret, game.tries, game.found = secret, 0, False
    for number in guesses:
        call = {"type": "function", "function": {"name": "guess", "arguments": {"number": number}}}
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        messages.append({"role": "tool", "name": "guess", "content": game.guess(number)})
    return [*messages, {"role": "assistant", "content": f"It was {secret}."}]


TASK = f"Find the secret number, from 1 to {LARGEST}. You have {TRIES} guesses."
PROMPT = [*example(3, [4, 2, 3]), {"role": "user", "content": TASK}]


SETTINGS: dict[str, Any] = {
    "max_steps": 16,
    "population_size": 32,
    "antithetic": True,
    "perturbation": "lowrank",
    "sigma": 0.004,
    "learning_rate": 0.012,
    "prompts_per_member": 4,
    "fitness_shaping": "pairs",
    "max_completion_length": 200,
    "max_tool_calling_iterations": TRIES,
    "eval_steps": 4,
}


def games(count: int) -> list[dict[str, Any]]:
    """Rows that differ by their number alone: the secret numbers come from the run's seed."""
    return [{"prompt": PROMPT, "game": n} for n in range(count)]


def main(model: str = "smollm2-135m-instruct", callbacks: Any = None, **settings: Any) -> ESTrainer:
    args = ESConfig(**{"output_dir": "runs/guess-number", **SETTINGS, **settings})
    trainer = ESTrainer(
        model, None, args, train_dataset=games(64), eval_dataset=games(64), environment_factory=GuessNumber,
        callbacks=callbacks,
    )  # fmt: skip
    trainer.train()
    return trainer


if __name__ == "__main__":
    main()
