"""A model learns to solve word problems with a calculator: a tool is a function with type hints and a docstring.

    python examples/calculator_tool.py

The model is the embedded SmolLM2-135M, which was hardly trained to call tools: three solved examples in front of every
problem show it how. It calls the calculator then, but often multiplies what should be subtracted. Afterwards the page
of the run (`seedtune report`) has the conversations before and after.
"""

from __future__ import annotations

import ast
import operator
import random
from typing import Any

from seedtune import ESConfig, ESTrainer

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def calculator(expression: str) -> str:
    """Compute an arithmetic expression.

    Args:
        expression: numbers with +, - and *, such as 12 * 7
    """
    return str(_value(ast.parse(expression, mode="eval").body))


def _value(node: ast.expr) -> int:
    """Only sums and products of numbers: what a model writes is not to be trusted with `eval`."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    raise ValueError("only numbers, +, - and * are known")


#: Text, and how its two numbers give the answer.
PROBLEMS = (
    ("A box holds {a} apples. How many apples do {b} boxes hold?", "{a} * {b}"),
    ("Ana reads {a} pages on Monday and {b} pages on Tuesday. How many pages is that?", "{a} + {b}"),
    ("A farm has {a} hens and sells {b} of them. How many hens are left?", "{a} - {b}"),
    ("A ticket costs {b} coins. What do {a} tickets cost?", "{a} * {b}"),
    ("Tom has {a} stamps. His sister gives him {b} more. How many stamps does he have?", "{a} + {b}"),
    ("A tank holds {a} liters, and {b} liters leak out. How many liters remain?", "{a} - {b}"),
)


ASK = " Use the calculator."


def conversation(question: str, expression: str) -> list[dict[str, Any]]:
    """A question, and how it is solved."""
    call = {"type": "function", "function": {"name": "calculator", "arguments": {"expression": expression}}}
    result = calculator(expression)
    return [
        {"role": "user", "content": question + ASK},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "calculator", "content": result},
        {"role": "assistant", "content": f"The answer is {result}."},
    ]


EXAMPLES = [
    *conversation("A shop has 83 lamps and sells 26 of them. How many lamps are left?", "83 - 26"),
    *conversation("Ben has 45 marbles and finds 28 more. How many marbles does he have?", "45 + 28"),
    *conversation("A shelf holds 31 books. How many books do 17 shelves hold?", "31 * 17"),
]


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Problems with their answers."""
    numbers, made = random.Random(seed), []
    for n in range(count):
        text, expression = PROBLEMS[n % len(PROBLEMS)]
        b = numbers.randint(11, 60)
        a = numbers.randint(b + 1, 99)
        question = {"role": "user", "content": text.format(a=a, b=b) + ASK}
        made.append({"prompt": [*EXAMPLES, question], "answer": calculator(expression.format(a=a, b=b))})
    return made


def correct(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """Whether the last message ends with the answer."""
    return [
        float(c[-1]["content"].strip().rstrip(".").endswith(f" {a}")) for c, a in zip(completions, answer, strict=True)
    ]


def main(model: str = "smollm2-135m-instruct", **settings: Any) -> ESTrainer:
    args = ESConfig(
        **{
            "output_dir": "runs/calculator",
            "max_steps": 12,
            "population_size": 32,
            "antithetic": True,
            "perturbation": "lowrank",
            "sigma": 0.004,
            "learning_rate": 0.012,
            "prompts_per_member": 6,
            "fitness_shaping": "pairs",
            "max_completion_length": 64,
            "max_tool_calling_iterations": 2,
            "eval_steps": 3,
            **settings,
        }
    )
    trainer = ESTrainer(model, correct, args, train_dataset=rows(60, seed=1), eval_dataset=rows(60, seed=2),
                        tools=[calculator])  # fmt: skip
    trainer.train()
    return trainer


if __name__ == "__main__":
    main()
