"""A tiny model that calls tools (what its tokenizer reads as calls is whatever it writes), and tools and rewards that
other processes run: importing this takes no torch.
"""

from __future__ import annotations

import copy

TEMPLATE = (
    "{% if tools %}<|system|>{% for t in tools %}{{ t.function.name }} {% endfor %}<|end|>{% endif %}"
    "{% for m in messages %}<|{{ 'user' if m.role == 'tool' else m.role }}|>{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}!{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}"
    "{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def talking_tokenizer(name="add", arguments=("a", "b")):
    """What a turn's first tokens are, are the arguments of a call of this tool; every fourth turn calls nothing."""
    from tiny import tiny_tokenizer  # not where only tools run

    tokenizer = copy.deepcopy(tiny_tokenizer())

    class Talking(type(tokenizer)):  # within a function: it is pickled with its code
        def parse_response(self, response, prefix=None, tools=None):
            text = self.decode(response)
            if not response or response[0] % 4 == 0:
                return {"role": "assistant", "content": text}
            values = {key: int(token) for key, token in zip(arguments, response, strict=False)}
            return {
                "role": "assistant",
                "content": text,
                "tool_calls": [{"type": "function", "function": {"name": name, "arguments": values}}],
            }

    tokenizer.__class__ = Talking
    tokenizer.chat_template = TEMPLATE
    tokenizer.response_template = {"read": "by parse_response"}
    return tokenizer


def ask(text):
    return [{"role": "user", "content": text}]


def add(a: int, b: int = 0) -> int:
    """Add two numbers.

    Args:
        a: the first
        b: the second
    """
    return a + b


def results(completions, **_):
    """The results of tools, added up."""
    said = [[int(m["content"]) for m in c if m["role"] == "tool" and m["content"].isdigit()] for c in completions]
    return [sum(numbers) / 1000 for numbers in said]


class Seen:
    """Draws a number; the model is told, and adds to it."""

    def reset(self, wanted=0, **_):
        import random

        self.drawn, self.sum, self.wanted = random.randrange(100), 0, wanted
        return f" {self.drawn}"

    def add(self, a: int, b: int = 0) -> str:
        """Add.

        Args:
            a: the first
            b: the second
        """
        self.sum += a
        return str(self.sum)

    def get_reward(self):
        return self.sum / 100 + self.drawn / 1000
