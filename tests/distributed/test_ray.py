"""A Ray fleet yields the journal and the bytes that one replica yields, whoever dies, joins or differs."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from runs import Notes
from seedtune import ESConfig, ESTrainer
from seedtune.data.prompts import PromptBatch
from seedtune.distributed.cluster import Cluster
from seedtune.distributed.dispatcher import Dispatcher
from seedtune.distributed.messages import (
    pack,
    pack_context,
    pack_outputs,
    pack_task,
    unpack,
    unpack_context,
    unpack_outputs,
    unpack_task,
)
from seedtune.distributed.replica import OutOfMemory, Replica, _is_memory, versions
from seedtune.engines.base import Completion, Prompt, Sampling
from seedtune.engines.tokenization import Texts
from seedtune.errors import ConfigError, FleetError, ModelError, RewardError
from seedtune.es.population import CENTER, Population
from seedtune.rewards.call import Scores
from seedtune.rewards.function import Reward
from seedtune.rewards.scorer import Scorer
from seedtune.rewards.serialize import Functions
from seedtune.rollout.chunks import ChunkTask, EvalContext
from seedtune.rollout.collector import ChunkOutput
from seedtune.training import factory
from seedtune.training.guard import Guard
from seedtune.utils.files import read_lines
from talking import ask, talking_tokenizer
from tiny import save_tiny, tiny_llama, tiny_tokenizer
from warm import warm_workers

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # as Cluster.secure sets it
ray = pytest.importorskip("ray")
fleet = pytest.importorskip("seedtune.distributed.ray_fleet")
actors = pytest.importorskip("seedtune.distributed.ray_actor")

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]  # Ray's own warnings

ROWS = [{"prompt": f"say {n} and then some"} for n in range(6)]
SETTINGS = ESConfig(
    max_steps=4, population_size=6, sigma=0.02, learning_rate=0.1, max_completion_length=12, prompts_per_step=4,
    chunk_size=4, eval_steps=2, device="cpu", dtype="float32", threads=1, seed=5, reward_workers=0, guard=False,
    load_best_model_at_end=False,
)  # fmt: skip


def short(completions, **_):
    return [-float(len(c)) for c in completions]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Room for two replicas; started once, as starting takes seconds."""
    with warm_workers():
        ray.init(
            num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error",
            _system_config={"worker_niceness": 0},  # not behind the tests of another process
        )  # fmt: skip
        yield
        ray.shutdown()


def made(folder, model, **options):
    args = replace(SETTINGS, output_dir=str(folder), **options)
    return ESTrainer(str(model), short, args, ROWS, progress=Notes())


def trained(folder, model, **options):
    trainer = made(folder, model, **options)
    trainer.train()
    return trainer, *written(folder)


def wait_for_all(monkeypatch, replicas):
    """The first iteration begins when all replicas are ready; otherwise how fast a process starts decides who helps."""
    wait = fleet.RayFleet._wait_for_replicas

    def wait_for_all(self, tick):
        while not self._started and len(self.dispatcher.workers) < replicas:
            self._admit(wait=1.0)
            tick()
        wait(self, tick)

    monkeypatch.setattr(fleet.RayFleet, "_wait_for_replicas", wait_for_all)


def written(folder):
    return (folder / "journal.jsonl").read_bytes(), (folder / "checkpoint-4" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tiny_folder):
    folder = tmp_path_factory.mktemp("alone")
    trained(folder, tiny_folder)
    return written(folder)


@pytest.mark.parametrize("perturbation", ["full", "lowrank"])
def test_two_replicas_yield_the_journal_of_one(tmp_path, tiny_folder, perturbation, monkeypatch):
    counted, metrics = [], fleet.RayFleet.metrics
    monkeypatch.setattr(fleet.RayFleet, "metrics", lambda self: counted.append(sum(self._tokens)) or metrics(self))
    wait_for_all(monkeypatch, 2)
    how = {"perturbation": perturbation, "antithetic": True, "chunk_size": 8}
    trained(tmp_path / "one", tiny_folder, **how)
    trainer, *theirs = trained(tmp_path / "two", tiny_folder, fleet="ray", replicas=2, reward_workers=2, **how)
    assert theirs == [*written(tmp_path / "one")]
    lines = [line for line in trainer.run.history if "fleet/replicas" in line]
    assert [line["fleet/replicas"] for line in lines] == [2] * 4
    assert all(0 < line["fleet/utilization"] <= 1 for line in lines)
    assert all(0 < line["fleet/slowest"] <= line["fleet/fastest"] for line in lines)
    new = [round(line["tokens_per_second"] * line["time/generate"]) for line in lines]
    assert counted == new  # of the iteration alone, though an evaluation came before


def test_a_run_that_chooses_its_steps_and_returns_has_the_journal_of_one(tmp_path, tiny_folder, monkeypatch):
    """Prompts of members' own, sigma that changes, a learning rate of the run's own, and a return to the base model."""
    diverged = iter([None, "for a test", None, None] * 2)
    monkeypatch.setattr(Guard, "iteration", lambda self, metrics, comparable: next(diverged))
    monkeypatch.setattr(Guard, "evaluation", lambda *_: None)
    how = {"antithetic": True, "prompts_per_member": 2, "fitness_shaping": "pairs", "perturbation": "lowrank",
           "guard": True, "learning_rate": "auto", "sigma_schedule": "linear", "population_size": 8}  # fmt: skip
    trained(tmp_path / "one", tiny_folder, **how)
    trainer, *theirs = trained(tmp_path / "two", tiny_folder, fleet="ray", replicas=1, **how)
    assert theirs == [*written(tmp_path / "one")]
    assert [(r.t, r.to) for r in trainer.run.journal.returns] == [(2, 0)]
    assert len({line["es/sigma"] for line in trainer.run.history if "es/sigma" in line}) == 4


def test_given_completions_are_read_by_replicas(tmp_path, tiny_folder):
    """The driver knows the texts: what comes back is numbers."""
    rows = [
        {"prompt": f"say {n}", "completion": [" yes", "no", "perhaps", "<|end|>never", "a", "b"][n]} for n in range(6)
    ]
    journals, shown = [], []
    for name in ("local", "ray"):
        args = replace(SETTINGS, output_dir=str(tmp_path / name), fleet=name, log_completions=True, max_steps=2)
        ESTrainer(str(tiny_folder), "log_likelihood", args, rows, progress=Notes()).train()
        journals.append((tmp_path / name / "journal.jsonl").read_bytes())
        files = sorted((tmp_path / name / "completions").iterdir())
        shown.append([(file.name, file.read_text()) for file in files])
    assert journals[0] == journals[1]
    assert shown[0] == shown[1]


def test_bytes_do_not_grow_with_the_model(tmp_path):
    """The bound: 2 KB + 64 B a member + the text of prompts and completions, and what rewards ask for beside it:
    `trainer_state`, whose history grows, and that a chunk has neither log-probabilities nor given texts.
    """
    sent = []
    for size in ({"layers": 1}, {"layers": 8, "hidden": 128}):
        model = save_tiny(tmp_path / f"model-{size['layers']}", **size)
        how = {"population_size": 16, "chunk_size": 16, "max_steps": 2, "reward_workers": None}
        trainer = made(tmp_path / f"run-{size['layers']}", model, fleet="ray", replicas=1, **how)
        trainer.train()
        lines = [line for line in trainer.run.history if "fleet/replicas" in line]
        text = sum(len(row["prompt"]) for row in ROWS[:4]) + 16 * 4 * 12  # of 16 chunks; a byte is a token here
        for line in lines:
            state = 650
            assert line["fleet/bytes_sent"] + line["fleet/bytes_received"] < 2000 + 64 * 16 + text + state
        sent.append(lines[-1]["fleet/bytes_sent"])
    assert 1e6 < trainer.engine.describe()["parameters"] < 1.5e6
    assert abs(sent[0] - sent[1]) < 100


def test_killing_a_replica_in_every_iteration_changes_nothing(alone, tmp_path, tiny_folder, monkeypatch):
    killed, hand_out = [], Dispatcher._hand_out

    def meddle(self, *args):
        hand_out(self, *args)
        busy = [w for w in self.workers if self.busy(w)]
        if busy and len(killed) < 3 and self._runs not in killed:
            killed.append(self._runs)
            os.kill(busy[0].pid, signal.SIGKILL)

    monkeypatch.setattr(Dispatcher, "_hand_out", meddle)
    trainer, *theirs = trained(tmp_path / "ray", tiny_folder, fleet="ray", replicas=2, reward_workers=None)
    assert len(killed) == 3
    assert theirs == [*alone]
    assert sum("is gone" in note and "goes to others" in note for note in trainer.progress.texts) == 3


@pytest.mark.parametrize("what", ["update", "answer"])
def test_a_replica_with_other_weights_is_named_and_replaced(alone, tmp_path, tiny_folder, monkeypatch, what):
    """Found by the digest behind its update, or, when that was not waited for, by the one with its answer."""
    spoilt, update = [], actors.Actor.update

    def spoil(self, payload):
        if not spoilt:
            t, coefficients, rate = unpack(payload)
            payload = pack((t, coefficients * np.float32(2), rate))
            spoilt.append(self.name)
        update(self, payload)
        if what == "answer" and self.name in spoilt:
            self.digest = None

    monkeypatch.setattr(actors.Actor, "update", spoil)
    trainer, *theirs = trained(tmp_path / "ray", tiny_folder, fleet="ray", replicas=2)
    assert theirs == [*alone]
    assert any(spoilt[0] in note and "digest" in note for note in trainer.progress.texts)


def test_a_run_of_a_fleet_is_resumed_by_one_replica_and_the_other_way_round(alone, tmp_path, tiny_folder):
    for first, then in (({"fleet": "ray", "replicas": 2}, {}), ({}, {"fleet": "ray", "replicas": 2, "save_steps": 1})):
        folder = tmp_path / first.get("fleet", "local")
        made(folder, tiny_folder, max_steps=2, **first).train()
        made(folder, tiny_folder, **then).train(resume_from_checkpoint=True)
        assert written(folder) == alone


def test_the_models_files_can_be_sent(alone, tmp_path, tiny_folder):
    trainer = made(tmp_path / "ray", tiny_folder, fleet="ray", share_model=True)
    trainer.fleet.model = "/a/folder/that/no/node/sees"
    trainer.train()
    assert written(tmp_path / "ray") == alone


def test_members_that_keep_everyone_waiting_are_left_out_and_the_journal_says_so(tmp_path, tiny_folder, monkeypatch):
    answer, slow = actors.Actor.execute, []

    def hang(self, work):
        first = work.members[0]
        if (first.iteration, first.index) == (2, 3):
            slow.append(self.name)
            return actors.Future()  # for ever
        return answer(self, work)

    monkeypatch.setattr(actors.Actor, "execute", hang)
    monkeypatch.setattr(fleet.RayFleet, "digest", lambda self: self._current_digest())
    _, journal, weights = trained(tmp_path / "ray", tiny_folder, fleet="ray", replicas=2, drop_stragglers=1)
    second = json.loads(journal.splitlines()[2])
    assert slow
    assert second["dropped"] == [3]
    assert (second["rewards"][3], second["coefficients"][3]) == ("nan", "0x0.0p+0")
    assert all(c != "0x0.0p+0" for n, c in enumerate(second["coefficients"]) if n != 3)
    from seedtune.cli.main import main

    out = tmp_path / "again"
    assert main(["replay", str(tmp_path / "ray"), "--model", str(tiny_folder), "--out", str(out)]) == 0
    assert (out / "model.safetensors").read_bytes() == weights


def told(prompts, completions, wanted, trainer_state, log_extra, log_metric, **_):
    """Uses all that a reward function is given."""
    asked = [prompt[-1]["content"] for prompt in prompts]
    log_extra("asked", asked)
    log_metric("shortest", min(len(c[0]["content"]) for c in completions))
    return [
        None if n == 1 else n / 7 - abs(len(c[0]["content"]) - w) + trainer_state.global_step
        for n, (c, w) in enumerate(zip(completions, wanted, strict=True))
    ]


def length(completion_ids, **_):
    return [len(ids) for ids in completion_ids]


def test_rewards_are_the_same_wherever_they_are_scored(tmp_path, tiny_folder):
    """In this process, in one beside it, in replicas, in actors. The function's answers depend on what it is called
    with, so pieces must be cut alike; responses that ride along for the KL are scored nowhere.
    """
    rows = [{"prompt": [{"role": "user", "content": f"say {n}"}], "wanted": n} for n in range(6)]

    def results(folder, **options):
        how = {"perturbation": "lowrank", "prompts_per_step": 5, "chunk_size": 20, "log_completions": True, **options}
        args = replace(SETTINGS, output_dir=str(folder), generation_batch_size=6, max_steps=2, **how)
        trainer = ESTrainer(str(tiny_folder), told, args, rows, eval_funcs=length, progress=Notes())
        trainer.train()
        timings = ("time/", "fleet/", "tokens_per_second")
        history = [{k: v for k, v in line.items() if not k.startswith(timings)} for line in trainer.run.history]
        completions = {f.name: f.read_text() for f in (folder / "completions").iterdir()}
        return (folder / "journal.jsonl").read_bytes(), history, completions

    first = results(tmp_path / "local")
    assert "shortest" in first[1][-2]
    assert "eval/length" in first[1][-1]
    assert '"asked": "say' in first[2]["train-1.jsonl"]
    assert results(tmp_path / "beside", reward_workers=None) == first
    for workers in (None, 0, 2):
        assert results(tmp_path / f"ray-{workers}", fleet="ray", replicas=2, reward_workers=workers) == first


def test_samples_of_a_prompt_are_scored_together_wherever_that_is(tmp_path, tiny_folder):
    """By replicas, too, which have whole groups; with what was measured of tokens."""

    def certain(completions, group, completion_logprobs, completion_kl_uniform, log_extra, **_):
        firsts = {g: c for c, g in reversed([*zip(completions, group, strict=True)])}
        log_extra("call", [str(group)] * len(completions))
        return [
            (c == firsts[g]) + sum(lp) / len(lp) + kl[0]
            for c, g, lp, kl in zip(completions, group, completion_logprobs, completion_kl_uniform, strict=True)
        ]

    def results(folder, **options):
        how = {"perturbation": "lowrank", "antithetic": True, "num_generations": 3, "temperature": 1.0,
               "aggregate": "majority", "chunk_size": 14, "log_completions": True, **options}  # fmt: skip
        args = replace(SETTINGS, output_dir=str(folder), max_steps=2, **how)
        ESTrainer(str(tiny_folder), certain, args, ROWS, progress=Notes()).train()
        completions = {f.name: f.read_text() for f in (folder / "completions").iterdir()}
        return (folder / "journal.jsonl").read_bytes(), completions

    alone = results(tmp_path / "alone")
    assert '"call": "[0, 0, 0, 1, 1, 1' in alone[1]["train-1.jsonl"]
    assert results(tmp_path / "ray", fleet="ray", replicas=2, reward_workers=None) == alone


def results(completions, environments, **_):
    return [sum(len(m["content"]) for m in c) / 100 + e.sum for c, e in zip(completions, environments, strict=True)]


class Adds:
    def reset(self, prompt, **_):
        self.sum = 0
        return f" {random.randrange(100)}"

    def add(self, a: int, b: int = 0) -> str:
        """Add.

        Args:
            a: the first
            b: the second
        """
        self.sum += a
        return f"{self.sum} {random.random():.3f}"

    def get_reward(self):
        return self.sum / 100


def test_conversations_are_the_same_wherever_they_are_held(tmp_path, tiny_folder):
    rows = [{"prompt": ask(row["prompt"])} for row in ROWS]

    def talked(folder, **options):
        how = {"max_completion_length": 40, "stop_strings": ["e", "a", "0"], "log_completions": True, "max_steps": 2}
        args = replace(SETTINGS, output_dir=str(tmp_path / folder), **{**how, **options})
        trainer = ESTrainer(
            str(tiny_folder), results, args, rows, processing_class=talking_tokenizer(), environment_factory=Adds,
            progress=Notes(),
        )  # fmt: skip
        trainer.train()
        lines = (tmp_path / folder / "journal.jsonl").read_text().splitlines()[1:]
        return [line.split('"chain"')[0] for line in lines], read_lines(tmp_path / folder / "completions/train-2.jsonl")

    alone, said = talked("alone")
    assert any(m["role"] == "tool" for row in said for m in row["messages"])
    for options in ({"reward_workers": None}, {"reward_workers": 1}):
        assert talked(f"ray-{options['reward_workers']}", fleet="ray", replicas=2, **options) == (alone, said)


BESIDE = """
def score(text):
    return float(len(text))
"""
MINE = '''
import {name}


def f(completions, **_):
    return [{name}.score(str(c)) for c in completions]


def tool(a: int) -> str:
    """Tell.

    Args:
        a: what
    """
    import {name}

    return str({name}.score("x" * (a % 50)))
'''


@pytest.mark.parametrize("workers", [None, 1])
def test_what_lies_beside_a_file_of_rewards_or_tools_is_sent_with_it(tmp_path, tiny_folder, monkeypatch, workers):
    """Nothing of the folder is there any more when replicas look."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    files, name = tmp_path / "files", f"ray_beside_{workers}"
    files.mkdir()
    (files / f"{name}.py").write_text(BESIDE)
    (files / "mine.py").write_text(MINE.format(name=name))
    args = replace(
        SETTINGS, output_dir=str(tmp_path / "ray"), fleet="ray", max_steps=1, reward_workers=workers, eval_steps=0,
        stop_strings=["e", "a", "0"], max_completion_length=40, log_completions=True,
    )  # fmt: skip
    trainer = ESTrainer(
        str(tiny_folder), f"{files}/mine.py:f", args, [{"prompt": ask(row["prompt"])} for row in ROWS],
        processing_class=talking_tokenizer("tool", ["a"]), tools=[f"{files}/mine.py:tool"], progress=Notes(),
    )  # fmt: skip
    start = trainer.fleet.start
    monkeypatch.setattr(trainer.fleet, "start", lambda batch: (shutil.rmtree(files), start(batch)))
    trainer.train()
    said = read_lines(tmp_path / "ray" / "completions" / "train-1.jsonl")
    told = [m["content"] for row in said for m in row["messages"] if m["role"] == "tool"]
    assert told
    assert all("No module" not in text for text in told), told


def stays(log_file, **_):
    with open(log_file[0], "a") as log:
        log.write(f"{os.getpid()} {os.getppid()}")
    time.sleep(1e6)


def test_rewards_are_scored_beside_the_replica_in_a_process_that_ends_with_it(tmp_path, tiny_folder):
    log = tmp_path / "log"
    args = replace(SETTINGS, output_dir=str(tmp_path / "ray"), fleet="ray", reward_workers=None, reward_timeout=500)
    rows = [{**row, "log_file": str(log)} for row in ROWS]
    trainer = ESTrainer(str(tiny_folder), stays, args, rows, progress=Notes())
    admit, replicas = trainer.fleet._admit, set()

    def look(*args, **options):
        admit(*args, **options)
        replicas.update(worker.pid for worker in trainer.fleet.dispatcher.workers)
        if log.exists():
            raise FleetError("that is enough")

    trainer.fleet._admit = look
    with pytest.raises(FleetError, match="enough"):
        trainer.train()
    scoring, parent = map(int, log.read_text().split())
    assert {parent} == replicas
    for _ in range(600):  # it looks once a second
        if not os.path.exists(f"/proc/{scoring}"):
            return
        time.sleep(0.1)
    pytest.fail("the scoring process outlives its replica")


def boom(completions, **_):
    raise ArithmeticError("seven is not even, out of memory")


def dies(completions, **_):
    os._exit(3)


def hangs(completions, **_):
    time.sleep(1e6)


class Unloadable:
    __name__ = "unloadable"

    def __call__(self, completions, **_):
        return [0.0] * len(completions)

    def __reduce__(self):
        return __import__, ("a_package_that_is_not_there",)


@pytest.mark.parametrize("workers", [None, 2])
@pytest.mark.parametrize(
    ("function", "said"),
    [
        (boom, r"seven is not even, out of memory\n  prompt: +'say \d and then some'\n  completion: '(.|\n)*in boom"),
        (dies, "a scoring process died"),
        (hangs, "'hangs' did not return within 2 seconds"),
        (Unloadable(), "cannot be loaded in a scoring process: .*a_package_that_is_not_there"),
    ],
    ids=["boom", "dies", "hangs", "unloadable"],
)
def test_replicas_and_scoring_actors_report_what_scoring_processes_report(
    tmp_path, tiny_folder, function, said, workers
):
    patience = 2 if function is hangs else 60
    args = replace(SETTINGS, output_dir=str(tmp_path), fleet="ray", reward_workers=workers, reward_timeout=patience)
    with pytest.raises(RewardError, match=said):
        ESTrainer(str(tiny_folder), function, args, ROWS, progress=Notes()).train()


def test_columns_that_a_replica_cannot_load_are_said(tmp_path, tiny_folder):
    args = replace(SETTINGS, output_dir=str(tmp_path), fleet="ray", reward_workers=None)
    rows = [{**row, "what": Unloadable()} for row in ROWS]
    with pytest.raises(RewardError, match=r"columns cannot be loaded .*a_package_that_is_not_there"):
        ESTrainer(str(tiny_folder), short, args, rows, progress=Notes()).train()


def test_a_note_says_when_replicas_will_idle(tmp_path, tiny_folder):
    trainer = made(tmp_path / "few", tiny_folder, fleet="ray", replicas=7, max_steps=1)
    trainer.train()
    idle = [note for note in trainer.progress.texts if "chunk_size" in note]
    assert len(idle) == 1
    assert "6 chunks for 7 replicas" in idle[0]
    enough = made(tmp_path / "enough", tiny_folder, fleet="ray", replicas=6)
    enough.fleet.start(enough.prompts.batch(5, 1))
    assert not any("chunk_size" in note for note in enough.progress.texts)


def test_what_cannot_work_is_said_at_once(tmp_path, tiny_folder):
    def trainer(model=str(tiny_folder), reward=short, **options):
        args = replace(SETTINGS, output_dir=str(tmp_path / "out"), fleet="ray", **options)
        return ESTrainer(model, reward, args, ROWS, processing_class=tiny_tokenizer(), progress=Notes())

    with pytest.raises(ConfigError, match="restore: exact"):
        trainer(restore="subtract")
    with pytest.raises(ConfigError, match="give its name"):
        trainer(tiny_llama())
    with pytest.raises(FleetError, match=r"no node of the cluster has 3 CPU, .* 2 CPU, 0 GPU"):
        trainer(replica_cpus=3)
    with pytest.raises(RewardError, match="cannot be sent"):
        trainer(reward=Unpicklable(), reward_workers=1)
    with pytest.raises(RewardError, match="cannot be sent"):
        trainer(reward=Unpicklable(), reward_workers=None)
    assert any("room for 2 of 5" in note for note in trainer(replicas=5).progress.texts)
    for workers, said in ((None, True), (0, False)):
        notes = trainer(replica_timeout=30, reward_workers=workers).progress.texts
        assert any("reward_timeout (60 s) is not shorter" in note for note in notes) is said


class Unpicklable:
    __name__ = "unpicklable"

    def __call__(self, completions, **_):
        return [0.0] * len(completions)

    def __reduce__(self):
        raise TypeError("it holds a lock")


@pytest.mark.parametrize("change", ["versions", "model", "digest"])
def test_a_replica_that_differs_is_refused_and_named(tmp_path, tiny_folder, monkeypatch, change):
    other = {"versions": ("seedtune 9.9", "noise stream 1"), "model": ("f00", []), "digest": "f00"}[change]
    get, asked = ray.get, []

    def lie(ref, **options):
        found = get(ref, **options)
        if isinstance(found, fleet.ReplicaHandshake) and not asked:
            asked.append(found)
            found = dataclasses.replace(found, **{change: other})
        return found

    monkeypatch.setattr(ray, "get", lie)
    said = {"versions": "runs seedtune 9.9", "model": "another base model", "digest": "other weights"}[change]
    with pytest.raises(FleetError, match=f"replica-1 on .* {said}"):
        made(tmp_path / "one", tiny_folder, fleet="ray", replicas=1).train()
    asked.clear()
    trainer = made(tmp_path / "two", tiny_folder, fleet="ray", replicas=2)
    trainer.train()
    assert any(said in note and "refused" in note for note in trainer.progress.texts)


def test_a_cluster_that_does_not_answer_is_an_error(monkeypatch):
    """Ray itself would go on trying for minutes; and of a token it says little."""

    def join(address):
        cluster = Cluster(1, address)
        fleet.RayFleet(SimpleNamespace(mixes_members=False), None, None, cluster=cluster, make=None, model="")

    def refuse(**options):
        raise ConnectionError("InvalidAuthToken.\nAnd more.")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(FleetError, match="address is host:port"):
        join("10.0.0.9")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(FleetError, match=f"nothing answers at {address} .*: is `ray start --head` running"):
            join(address)
        server.listen()
        with pytest.raises(FleetError, match=f"at {address} did not let us in: InvalidAuthToken. Is the token"):
            join(address)


@pytest.mark.parametrize(
    ("address", "beyond"),
    [(None, False), ("auto", False), ("127.0.0.1:6379", False), ("localhost:6379", False), ("[::1]:6379", False),
     ("10.0.0.1:6379", True), ("ray://head.example:10001", True)],
)  # fmt: skip
def test_a_token_is_asked_for_beyond_this_machine(address, beyond, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    cluster = Cluster(1, address)
    assert cluster.beyond_this_machine is beyond
    if beyond:
        with pytest.raises(FleetError, match="RAY_AUTH_MODE=token"):  # Ray is imported already
            cluster.secure()
        monkeypatch.delitem(__import__("sys").modules, "ray")
        cluster.secure()
        assert os.environ["RAY_AUTH_MODE"] == "token"
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        cluster.secure()
    else:
        cluster.secure()
        assert "RAY_AUTH_MODE" not in os.environ


@pytest.mark.parametrize("logprobs", [False, True])  # and seeds of rows, and samples of prompts
def test_what_is_packed_comes_out_again(logprobs):
    texts = Texts(tiny_tokenizer(), tiny_llama())
    population, members = Population(4, True), Population(4, True).ask(7)
    prompts = texts.encode(["say this", "and that", "say this"], 8)
    how = Sampling(8, temperature=0.5, rows_at_once=2, first_sampled_row=1, logprobs=logprobs, kl_uniform=logprobs)
    functions = Functions.of([Reward(short)])
    questions = PromptBatch((), (prompts[1], prompts[0]), {"wanted": [{1: 2}, None]})
    for asked in (
        EvalContext(questions, Sampling(8), {"global_step": 3}, functions, 1.5, 1 + logprobs),
        EvalContext(replace(questions, columns={}), how, {}),
    ):
        theirs = unpack_context(pack_context(asked), {functions.key: functions})
        assert asked.functions is None or theirs == asked
        assert [p.ids for p in theirs.batch.prompts] == [p.ids for p in asked.batch.prompts]
        work = ChunkTask(
            (members[3], CENTER, members[0]), tuple(prompts), how, (2**62, 2**60, 7) if logprobs else 2**60,
            (1 * asked.num_generations, 0), asked,
        )  # fmt: skip  # the third rides along
        again = unpack_task(pack_task(work), population, theirs)
        assert [p.ids for p in again.prompts] == [p.ids for p in prompts]
        assert replace(again, prompts=work.prompts, context=asked) == work
    ids = [texts.encode([text], 1)[0].ids for text in ("é ü", "x")]

    def completion(ids, **how):
        measured = {"logprobs": [-0.5] * len(ids), "kl_uniform": [2.0] * len(ids)} if logprobs else {}
        return texts.completion(ids, **measured, **how)

    scores = [Scores([0.1], {"said": ["é"]}, {"m": [2.0]}), Scores([None])]
    parts = [
        ChunkOutput({2: completion([*ids[0], 0]), 3: completion(ids[1], stopped=True)}, scores),
        ChunkOutput({0: completion(ids[1]), 1: completion([0])}),
    ]
    assert unpack_outputs(unpack(pack(pack_outputs(parts))), texts.completion) == parts


class Hungry:
    """An engine that can decode `most` rows at once."""

    def __init__(self, most, error=RuntimeError):
        self.most, self.error, self.tried = most, error, []

    def set_members(self, members):
        pass

    def generate(self, prompts, sampling, seed, on_completions):
        self.tried.append(min(sampling.rows_at_once, len(prompts)))
        if self.tried[-1] > self.most:
            raise self.error("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ...")
        on_completions({})


def test_a_replica_joins_by_whatever_it_can_read_and_repeats_nothing(tmp_path, tiny_folder):
    def replica():
        return Replica(partial(factory.engine, tokenizer=None, args=SETTINGS), str(tiny_folder), Population(6))

    updates = [(t, np.linspace(-1, 1, 6).astype(np.float32) / t, 0.1) for t in (1, 2, 3, 4)]
    half = replica()
    there = half.join(versions(), None, updates[:2], 0.02)
    half.engine.save_state(tmp_path / "state")
    whole = half.join(versions(), None, updates, 0.02)  # as when an update comes while it joins
    begin = (str(tmp_path / "state"), there.digest, 2)
    assert replica().join(versions(), begin, updates, 0.02).digest == whole.digest != there.digest
    (tmp_path / "state").unlink()
    assert replica().join(versions(), begin, updates, 0.02).digest == whole.digest
    assert replica().join(("seedtune 9",), None, updates, 0.02).digest == ""


def test_out_of_memory_halves_the_batch_once():
    payload = pack_task(ChunkTask((CENTER,) * 16, (Prompt("", (1,)),) * 16, Sampling(8, rows_at_once=64), 0))

    def replica(most):
        made = Replica(lambda model: Hungry(most), "", Population(2))
        made._engine = Hungry(most)
        return made

    it = replica(8)
    assert unpack(it.execute(payload))[1] == 8
    assert unpack(it.execute(payload))[1] is None
    assert it.engine.tried == [16, 8, 8]
    with pytest.raises(OutOfMemory, match="8 rows"):
        replica(4).execute(payload)
    assert _is_memory(ModelError("out of GPU memory with 128 rows of up to 300 tokens: set ..."))
    assert not _is_memory(ModelError("log-probabilities need a model that caches keys and values"))


def test_a_reward_function_without_memory_is_not_a_replica_without(tmp_path):
    class Fluent(Hungry):
        def generate(self, prompts, sampling, seed, on_completions):
            self.tried.append(len(prompts))
            on_completions(dict.fromkeys(range(len(prompts)), Completion((1,), "é", truncated=False)))

    scorer = Scorer([Reward(boom)], workers=0, timeout=1)
    asked = EvalContext(PromptBatch((), (Prompt("say", (1,)),), {}), Sampling(8), {}, scorer.functions, 1.0)
    replica = Replica(lambda model: Fluent(0), "", Population(2))
    replica._engine = Fluent(0)
    replica._scorers[asked.functions.key] = scorer
    replica.add_functions(pack(asked.functions))
    replica.set_context(pack_context(asked))
    with pytest.raises(RewardError, match="out of memory"):
        replica.execute(
            pack_task(ChunkTask((CENTER,) * 16, asked.batch.prompts * 16, Sampling(8), 0, (0,) * 16, asked))
        )
    assert replica.engine.tried == [16]


def test_a_replica_without_memory_is_removed_and_not_replaced(alone, tmp_path, tiny_folder, monkeypatch):
    answer = actors.Actor.execute

    def starve(self, work):
        if self.name == "replica-1":
            out = actors.Future()
            out.set_exception(self._dispatcher_error(OutOfMemory("out of memory, also with 2 rows at once")))
            return out
        return answer(self, work)

    monkeypatch.setattr(actors.Actor, "execute", starve)
    wait_for_all(monkeypatch, 2)
    trainer, *theirs = trained(tmp_path / "ray", tiny_folder, fleet="ray", replicas=2)
    assert theirs == [*alone]
    assert trainer.run.history[-2]["fleet/replicas"] == 1
    assert any("out of memory" in note and "removed" in note for note in trainer.progress.texts)


def test_it_ends_with_the_users_second_ctrl_c(tmp_path, tiny_folder):
    trainer = made(tmp_path / "ray", tiny_folder, fleet="ray", max_steps=10_000)

    def interrupt(*_, **__):
        if trainer.run.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    trainer.progress.rows = interrupt
    began = time.monotonic()
    assert trainer.train().interrupted
    assert time.monotonic() - began < 120
    assert trainer.run.step >= 2


@pytest.mark.parametrize("reward_batch", ["any", "group", "member"])
def test_whole_groups_are_scored_by_actors(reward_batch):
    """Replicas have chunks, which a group lies across."""
    made = object.__new__(fleet.RayFleet)
    made.rollouts = SimpleNamespace(spec=SimpleNamespace(reward_batch=reward_batch))
    made.cluster = SimpleNamespace(replicas=3)
    scorer = made.scorer([Reward(short)], workers=None, timeout=60)
    assert scorer.on_replicas == (reward_batch == "any")
    assert (type(scorer).__name__, scorer._workers) == (("Scorer", 1) if reward_batch == "any" else ("RayScorer", 3))


def test_signals_reach_what_a_scoring_actor_starts():
    """Ray blocks SIGINT in its workers, and a mask is inherited."""
    from seedtune.distributed.ray_scorer import RayScorer
    from seedtune.rewards.call import Batch

    def grade(completions, **_):
        import subprocess

        program = subprocess.Popen(["sleep", "600"])
        program.send_signal(signal.SIGINT)
        return [float(program.wait(timeout=10)) for _ in completions]

    with RayScorer([Reward(grade)], workers=1, timeout=60) as scorer:
        scores = scorer.gather([scorer.submit(Batch(["q"], ["a"], [[1]], {}))])
    assert scores[0][0].rewards == [-signal.SIGINT]
