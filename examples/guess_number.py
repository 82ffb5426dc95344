"""A model learns to find a number by feedback, over several turns: an environment is a class whose methods are tools.

    python examples/guess_number.py

The same class works with TRL's GRPOTrainer: `environment_factory=GuessNumber`. There is no dataset and no reward
function: `reset` begins an episode, with random numbers that are seeded from the run, and `get_reward` ends it.
"""

from __future__ import annotations

import random
from typing import Any

from seedtune import ESConfig, ESTrainer

LARGEST, TRIES = 16, 5


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
PROMPT = [*example(11, [8, 12, 10, 11]), *example(3, [8, 4, 2, 3]), {"role": "user", "content": TASK}]


def main(model: str = "smollm2-135m-instruct", **settings: Any) -> ESTrainer:
    args = ESConfig(
        **{
            "output_dir": "runs/guess-number",
            "max_steps": 12,
            "population_size": 32,
            "antithetic": True,
            "perturbation": "lowrank",
            "sigma": 0.004,
            "learning_rate": 0.012,
            "prompts_per_member": 4,
            "fitness_shaping": "pairs",
            "max_completion_length": 400,
            "max_tool_calling_iterations": TRIES,
            "eval_steps": 3,
            **settings,
        }
    )
    games = [{"prompt": PROMPT, "game": n} for n in range(64)]
    trainer = ESTrainer(model, None, args, train_dataset=games, eval_dataset=games, environment_factory=GuessNumber)
    trainer.train()
    return trainer


if __name__ == "__main__":
    main()
