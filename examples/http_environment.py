"""An environment that lives on a server, as OpenEnv's do: the class here is its client, and its methods are tools.

    SERVER=http://localhost:8000 python examples/http_environment.py

The server answers POST /reset and POST /step with JSON: {"observation": {...}, "reward": ..., "done": ...}. Any client
library can stand in place of `urllib`; TRL's way, an `environment_factory` whose instances hold a client, is the same.
"""

from __future__ import annotations

import json
import os
import urllib.request
from typing import Any

from seedtune import ESConfig, ESTrainer


class EchoEnvironment:
    """A server that echoes what it is told, and rewards long messages."""

    def __init__(self) -> None:
        self.server = os.environ.get("SERVER", "http://localhost:8000")

    def _post(self, path: str, **data: Any) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.server}/{path}", json.dumps(data).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return dict(json.load(answer))

    def reset(self, seed: int, **row: Any) -> str:
        """Begin an episode; the server draws by the seed, so that a run repeats."""
        self.reward = 0.0
        return str(self._post("reset", seed=seed)["observation"]["text"])

    def echo(self, message: str) -> str:
        """Have a message echoed.

        Args:
            message: what to say
        """
        result = self._post("step", action={"message": message})
        self.reward += result["reward"] or 0.0
        return str(result["observation"]["text"])

    def get_reward(self) -> float:
        return self.reward


def main(model: str = "Qwen/Qwen2.5-0.5B-Instruct", **settings: Any) -> ESTrainer:
    args = ESConfig(**{"output_dir": "runs/echo", "max_steps": 10, "max_completion_length": 128, **settings})
    rows = [{"prompt": [{"role": "user", "content": "Say something to the tool. "}]} for _ in range(8)]
    trainer = ESTrainer(model, None, args, train_dataset=rows, environment_factory=EchoEnvironment)
    trainer.train()
    return trainer


if __name__ == "__main__":
    main()
