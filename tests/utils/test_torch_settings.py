"""What users' functions change of torch in the run's process is set back: the run's own sums round as before."""

from __future__ import annotations

import pytest
import torch
from transformers import TrainerCallback

from runs import plain, trainer
from seedtune.tools.pool import ToolPool
from seedtune.tools.toolset import ToolSet
from seedtune.utils.torch_settings import settings_kept


def settings():
    return (
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.get_float32_matmul_precision(),
        torch.get_deterministic_debug_mode(),
    )


def change():
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_float32_matmul_precision("medium")
    torch.set_deterministic_debug_mode("warn")


@pytest.fixture(autouse=True)
def before():
    with settings_kept():
        yield settings()


@settings_kept()
def change_and_fail(before):
    change()
    assert all(now != old for now, old in zip(settings(), before, strict=True))
    raise ZeroDivisionError


def test_each_of_them_is_set_back_also_after_an_error(before):
    with pytest.raises(ZeroDivisionError):
        change_and_fail(before)
    assert settings() == before
    assert torch.empty(0).device.type == "cpu"


def test_precision_that_has_no_single_value_is_left(before):
    with settings_kept():
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        with settings_kept():
            torch.set_num_threads(before[0] + 1)
        assert torch.get_num_threads() == before[0]
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    assert settings() == before


class _Careless(TrainerCallback):
    def on_step_begin(self, *args, **kwargs):
        change()

    on_log = on_evaluate = on_save = on_step_begin


def _sync(completions, **kwargs):
    change()
    return plain(completions)


async def _async(completions, **kwargs):
    change()
    return plain(completions)


def _rollout(prompts, trainer):
    done = trainer.generate_completions(prompts)
    change()
    return {key: [row[key] for row in done] for key in ("prompt_ids", "completion_ids", "logprobs")}


@pytest.mark.parametrize(
    "options",
    [
        {"reward_funcs": _sync},
        {"reward_funcs": _async},
        {"reward_funcs": plain, "callbacks": [_Careless()]},
        {"reward_funcs": plain, "rollout_func": _rollout},
    ],
    ids=["reward", "async reward", "callback", "rollout_func"],
)
def test_a_run_does_not_see_what_they_change(tmp_path, before, options, monkeypatch):
    made, seen = trainer(tmp_path, max_steps=2, **options), []
    update = made.fleet.update
    monkeypatch.setattr(made.fleet, "update", lambda *args: (seen.append(settings()), update(*args))[1])
    made.train()
    assert seen == [before] * 2
    assert settings() == before


def test_nor_what_tools_change_in_its_process(before):
    def lookup(key: str) -> str:
        """Looks it up.

        Args:
            key: what.
        """
        change()
        return key

    pool = ToolPool(ToolSet.of([lookup], None), workers=0, timeout=5)
    key, told = pool.start(None, {}, 0)
    assert pool.result(told) is None
    (result,) = pool.result(pool.call(key, [{"name": "lookup", "arguments": {"key": "a"}}]))
    assert (result.content, settings()) == ("a", before)
