"""Environments of the package verifiers (0.4), by the name of their taskset: one message in, one completion out, scored
by the rewards of its tasks.

    task: verifiers
    task_args: {name: my-taskset, config: {split: train}, test_config: {split: test}}

What needs more than one answer is refused: tools (in verifiers 0.4 a toolset is an MCP server that is started for each
rollout, with a channel of its own for state), a simulated user, several agents, a container, a judge model.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

from ..errors import ConfigError
from .base import Row, Rows, Task, text_of
from .prompting import check_whole


def configure(
    name: str,
    config: Mapping[str, Any] | None = None,
    test_config: Mapping[str, Any] | None = None,
    size: int = 500,
    test_size: int = 100,
) -> Task:
    """A taskset as a task. `config`: its settings, by its own names; `test_config`: those for held-out tasks, without
    which a fifth is held out, by the hash of what is asked. `size`, `test_size`: tasks at most.

    Raises ConfigError.
    """
    for setting, value in (("config", config), ("test_config", test_config)):
        if value is not None and not isinstance(value, Mapping):
            raise ConfigError(f"task_args: {setting} is a mapping of settings of the taskset, got {value!r}.")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"task_args: name is the name of an installed taskset of verifiers, got {name!r}.")
    check_whole("size", size, 1)
    check_whole("test_size", test_size, 1)
    texts = [None if given is None else json.dumps(dict(given), sort_keys=True) for given in (config, test_config)]
    return Task(
        name="verifiers",
        load=partial(_load, name, texts[0] or "{}", texts[1], size, test_size),
        rewards=(verifiers_reward,),
        reference=lambda row: "",  # a taskset need not know the right answer
        full_marks=1.0,
    )


async def verifiers_reward(
    completions: Sequence[Any],
    prompts: Sequence[Any],
    taskset: Sequence[str],
    config: Sequence[str],
    task: Sequence[str],
    log_extra: Callable[..., None] = lambda *_: None,
    **_: Any,
) -> list[float]:
    """The weighted sum of the task's rewards; each of them is a column of completions/, `verifiers/NAME`."""
    rows = zip(completions, prompts, taskset, config, task, strict=True)
    found = await asyncio.gather(*(_scores(text_of(c), *row) for c, *row in rows))
    for name in dict.fromkeys(name for scores in found for name in scores):
        log_extra(f"verifiers/{name}", [scores[name][0] if name in scores else None for scores in found])
    return [sum(score * weight for score, weight in scores.values()) for scores in found]


async def _scores(text: str, prompt: Any, taskset: str, config: str, task: str) -> dict[str, tuple[float, float]]:
    """Each reward of the task, and its weight."""
    import verifiers.v1 as vf
    from verifiers.v1.graph import MessageNode

    source = _taskset(taskset, config)
    kind = type(source).task_type()
    made = kind(kind.data_type().model_validate_json(task), source.config.task)
    said = [*_messages(prompt), {"role": "assistant", "content": text}]
    roles = {"system": vf.SystemMessage, "user": vf.UserMessage, "assistant": vf.AssistantMessage}
    nodes = [
        MessageNode(parent=n - 1 if n else None, message=roles[m["role"]](content=m["content"]), sampled=m is said[-1])
        for n, m in enumerate(said)
    ]
    trace: Any = vf.Trace(
        task=vf.TraceTask(type=kind.__name__, data=made.data), agent=vf.AgentInfo(config=vf.AgentConfig()), nodes=nodes
    )
    await made.score(trace)
    return {name: (r.score, r.weight) for name, r in trace.rewards.items() if r is not None}


def _messages(prompt: Any) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


@lru_cache(maxsize=8)
def _taskset(name: str, config: str) -> Any:
    """The taskset, once it is known that a single completion answers its tasks. Raises ConfigError."""
    try:
        import verifiers.v1 as vf
    except ImportError as e:
        raise ConfigError(
            f'task: verifiers needs verifiers 0.4 ({e}). In a clone of Seedtune: pip install ".[verifiers]".'
        ) from e
    try:
        settings = vf.taskset_config_type(name).model_validate({**json.loads(config), "id": name})
        source = vf.load_taskset(settings)
        environment = vf.environment_class(name)
    except (ImportError, AttributeError, TypeError, ValueError) as e:
        raise ConfigError(f"task_args: verifiers cannot load the taskset {name!r}: {e}") from e
    if why := _needs_more(source, environment):
        raise ConfigError(
            f"task: verifiers: {name} {why}. Only tasks that one completion answers are supported here, scored by "
            "rewards over what was said. For tools and several turns give ESTrainer (or a recipe) functions as tools, "
            "or a class as environment_factory, which may call what the taskset's tools call."
        )
    return source


def _needs_more(source: Any, environment: Any) -> str:
    """Why one completion is not enough; empty: it is."""
    import verifiers.v1 as vf

    kind, settings = type(source).task_type(), source.config
    task = kind.__new__(kind)
    task.config = settings.task
    hooks = task.hooks("reward")
    runs = [hook.__name__ for hook in (*hooks, *task.hooks("metric")) if _requires_runtime(hook)]
    found = {
        "has an environment of its own, with several agents or turns": environment is not vf.SingleAgentEnv,
        "brings a harness of its own": vf.default_harness_id(settings.id) != "bash",
        "has tools, which verifiers starts as servers (MCP) for each rollout": bool(
            type(source).toolsets(settings) or kind.toolsets(settings.task)
        ),
        "needs a container": kind.NEEDS_CONTAINER,
        "prepares a runtime": (kind.setup, kind.finalize) != (vf.Task.setup, vf.Task.finalize),
        f"scores in a runtime ({', '.join(runs)})": bool(runs),
        "is scored by a judge model": bool(settings.task.judges),
        "has no reward": not hooks,
    }
    return next((why for why, holds in found.items() if holds), "")


def _requires_runtime(hook: Callable[..., Any]) -> bool:
    runtime = inspect.signature(hook).parameters.get("runtime")
    return runtime is not None and runtime.default is runtime.empty


def _load(name: str, config: str, test_config: str | None, size: int, test_size: int) -> tuple[Rows, Rows]:
    """Raises ConfigError."""
    if test_config is not None:
        held_out = list(itertools.islice(_rows(name, test_config), test_size))
        asked = {json.dumps(row["prompt"]) for row in held_out}
        train = [row for row in itertools.islice(_rows(name, config), size) if json.dumps(row["prompt"]) not in asked]
    else:
        rows = list(itertools.islice(_rows(name, config), size + test_size))
        held_out = [row for row in rows if _is_held_out(row)][:test_size]
        train = [row for row in rows if not _is_held_out(row)][:size]
    if not train or not held_out:
        raise ConfigError(
            f"task_args: of {name}, {len(train)} tasks are there to train on and {len(held_out)} to test on: raise "
            "size, or set test_config."
        )
    return train, held_out


def _is_held_out(row: Row) -> bool:
    return hashlib.sha256(json.dumps(row["prompt"]).encode()).digest()[0] % 5 == 0


def _rows(name: str, config: str) -> Any:
    """Different questions, in the taskset's order."""
    seen: set[str] = set()
    for task in _taskset(name, config):
        data = task.data
        if data.prompt is None:
            raise ConfigError(f"task: verifiers: {name} has a user who opens the conversation: it needs several turns.")
        given = data.prompt if isinstance(data.prompt, str) else [message.model_dump() for message in data.prompt]
        messages = [{"role": message["role"], "content": message["content"]} for message in _messages(given)]
        if any(not isinstance(message["content"], str) for message in messages):
            raise ConfigError(f"task: verifiers: {name} shows images, and only text is supported.")
        prompt = [*([{"role": "system", "content": data.system_prompt}] if data.system_prompt else []), *messages]
        if (key := json.dumps(prompt)) not in seen:
            seen.add(key)
            yield {"prompt": prompt, "taskset": name, "config": config, "task": data.model_dump_json()}


def _nameless() -> tuple[Rows, Rows]:
    raise ConfigError("task: verifiers needs the name of a taskset: task_args: {name: my-taskset}.")


TASK = Task(
    name="verifiers",
    load=_nameless,
    rewards=(verifiers_reward,),
    reference=lambda row: "",
    full_marks=1.0,
    configure=configure,
)
