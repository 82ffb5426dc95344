"""The examples with tools run, on a tiny model; their tools, games and rewards do what they say."""

from __future__ import annotations

import json
import runpy
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from seedtune.errors import RewardError
from seedtune.tools.pool import ToolPool
from seedtune.tools.toolset import ToolSet
from tiny import save_tiny, tiny_tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def model(tmp_path):
    folder = save_tiny(tmp_path / "model", context=8192)
    tokenizer = tiny_tokenizer().__class__.from_pretrained(folder)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    return str(folder)


SHORT = {
    "max_steps": 1, "population_size": 2, "max_completion_length": 4, "prompts_per_member": 2, "prompts_per_step": 2,
    "guard": False, "load_best_model_at_end": False, "drift_samples": 0, "dtype": "float32",
    "antithetic": True, "fitness_shaping": "pairs",
}  # fmt: skip


@pytest.mark.parametrize("name", ["calculator_tool", "guess_number"])
def test_an_example_runs(model, tmp_path, name):
    example = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    trainer = example["main"](model, output_dir=str(tmp_path / "run"), **SHORT)
    assert trainer.run.step == 1
    assert "eval/tools/call_frequency" in trainer.run.history[0]
    assert any("ChatML template of ours" in remark for remark in trainer.engine.remarks)


def test_the_calculator_computes_and_no_more():
    example = runpy.run_path(str(EXAMPLES / "calculator_tool.py"))
    assert example["calculator"]("12 * 7 + 1 - 3") == "82"
    for hostile in ("__import__('os').getcwd()", "9 ** 9 ** 9", "a", "1 / 2", "(lambda: 1)()"):
        with pytest.raises((ValueError, SyntaxError)):
            example["calculator"](hostile)
    rows = example["rows"](60, seed=1)
    assert len({row["prompt"][-1]["content"] for row in rows}) > 55
    said = [[{"content": text}] for text in ("It is 12.", "The answer is 12", "It is 112.", "12 is it")]
    assert example["correct"](said, answer=["12"] * 4) == [1, 1, 0, 0]


def test_the_number_is_found_by_feedback():
    example = runpy.run_path(str(EXAMPLES / "guess_number.py"))
    game = example["GuessNumber"]()
    game.reset(game=1)
    game.secret = 5
    assert [game.guess(n) for n in (4, 6)] == ["The secret number is larger.", "The secret number is smaller."]
    assert game.get_reward() == 0
    assert (game.guess(5), game.get_reward()) == ("Right.", 1)
    results = [m["content"] for m in example["PROMPT"] if m["role"] == "tool"]
    assert results.count("Right.") == 1


class Server(BaseHTTPRequestHandler):
    """Echoes, as the example says."""

    def do_POST(self):
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = given["action"]["message"] if self.path == "/step" else f"room {given['seed']}"
        answer = {"observation": {"text": text}, "reward": len(text) / 100, "done": False}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture
def server(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("SERVER", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()


def test_an_environment_on_a_server(model, tmp_path, server):
    example = runpy.run_path(str(EXAMPLES / "http_environment.py"))
    pool = ToolPool(ToolSet.of(None, example["EchoEnvironment"]), workers=1, timeout=10)
    key, told = pool.start(None, {"prompt": "x"}, 7)
    assert pool.result(told) == "room 7"
    (result,) = pool.result(pool.call(key, [{"name": "echo", "arguments": {"message": "hello"}}]))
    assert (result.content, result.failed) == ("hello", False)
    assert pool.result(pool.end(key, keep=False)).reward == 0.05
    pool.close()
    trainer = example["main"](model, output_dir=str(tmp_path / "run"), **SHORT)
    assert trainer.run.step == 1


def test_a_server_that_is_not_there_is_said(model, tmp_path, monkeypatch):
    monkeypatch.setenv("SERVER", "http://127.0.0.1:9")
    example = runpy.run_path(str(EXAMPLES / "http_environment.py"))
    with pytest.raises(RewardError, match="environment EchoEnvironment: reset raised URLError"):
        example["main"](model, output_dir=str(tmp_path / "run"), **SHORT)
