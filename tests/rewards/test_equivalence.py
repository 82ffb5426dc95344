"""When two answers are the same: each kind of equivalence, and what it cannot work with."""

from __future__ import annotations

import threading

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel

from seedtune.errors import ConfigError
from seedtune.rewards.confidence import majority, semantic_density
from seedtune.rewards.equivalence import Exact, plug_of
from seedtune.rewards.equivalence.exact import normalize
from seedtune.tasks import math_equal
from tiny import tiny_tokenizer

LABELS = {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}


def tiny_bert(folder, kind=BertForSequenceClassification, labels=LABELS, bias=None):
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(tiny_tokenizer()), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
        initializer_range=0.8, max_position_embeddings=96, id2label=labels, label2id={v: k for k, v in labels.items()},
    )  # fmt: skip
    model = kind(config)
    if bias is not None:
        model.classifier.weight.data.zero_()
        model.classifier.bias.data = torch.tensor(bias)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        (" Paris. ", "paris"),
        ("**“New   York”**!", "new york"),
        ("ＡＢ", "ab"),
        ("-3.5", "-3.5"),
        (".5.", ".5"),
        ("(1, 2)", "(1, 2)"),
        ("1,000", "1,000"),
        ("...", ""),
        ("", ""),
    ],
)
def test_normalized_text(text, normal):
    assert normalize(text) == normal


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ("exakt", "equivalence is exact, math"),
        ("", "equivalence is exact"),
        (3, "equivalence is exact"),
        ("exact: model", "does not take"),
        ("entailment", "does not take"),
        ({"embeddings": "m", "cosine": 1}, "does not take"),
    ],
)
def test_what_is_no_equivalence(choice, says):
    with pytest.raises(ConfigError, match=says):
        plug_of(choice)


def test_names_and_mappings_say_the_same():
    assert plug_of("exact") == Exact()
    assert plug_of("entailment: a/b") == plug_of({"entailment": "a/b"})
    assert plug_of({"embeddings": "a/b", "threshold": 0.5}).threshold == 0.5


# --- math -------------------------------------------------------------------------------------------------------------


def test_numbers_and_latex():
    pytest.importorskip("math_verify")
    plug = plug_of("math")
    plug.check()
    half = [r"so \boxed{\frac{1}{2}}", "0.5", "The answer is 1/2.", r"$\frac{2}{4}$"]
    assert all(plug.same(a, b, "") for a in half for b in half)
    assert not plug.same("0.5", "0.6", "")
    assert plug.key("no number at all") == ""
    texts = [half[0], "0.5", "0.25", "none"]
    assert majority(prompts=["q"] * 4, completions=texts, group=[0] * 4, equivalence="math") == [1, 1, 0, 0]


def test_math_works_beside_the_main_thread():
    """Where math-verify's own alarms would raise."""
    pytest.importorskip("math_verify")
    found = []
    thread = threading.Thread(target=lambda: found.append(plug_of("math").same("3/4", "0.750", "")))
    thread.start()
    thread.join()
    assert found == [True]


def test_math_verify_may_be_missing(monkeypatch):
    monkeypatch.setattr(math_equal, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs math-verify"):
        plug_of("math").check()


def test_what_is_no_answer_equals_nothing():
    pytest.importorskip("math_verify")
    assert not plug_of("math").same("nothing", "nothing", "")
    assert not plug_of("math").same("9**9**9**9", "9**9**9**9", "")


def test_the_answer_of_a_long_text_is_at_its_end():
    pytest.importorskip("math_verify")
    plug = plug_of("math")
    assert plug.same("2^{3^{2}} is large. " * 90 + r"So \boxed{512}, and that is all. " + "x" * 900, "512", "")
    assert plug.same("Let me see. " * 90 + "It is 512.", "512", "")


# --- models -----------------------------------------------------------------------------------------------------------


def test_bidirectional_entailment(tmp_path):
    always = plug_of({"entailment": tiny_bert(tmp_path / "yes", bias=[0.0, 0.0, 5.0])})
    never = plug_of({"entailment": tiny_bert(tmp_path / "no", bias=[0.0, 5.0, 0.0])})
    always.check()
    assert always.same("a cat", "a dog", "What?")
    assert not never.same("a cat", "a dog", "What?")
    assert never.same("A cat", "a cat.", "What?"), "the same text says the same"
    calls = {"prompts": ["What?"] * 3, "completions": ["x", "y", ""], "group": [0] * 3}
    assert majority(**calls, equivalence={"entailment": always.model}) == [1, 1, 0]


def test_entailment_is_asked_both_ways_behind_the_question(tmp_path):
    """Against the model itself, called by hand."""
    folder = tiny_bert(tmp_path / "nli")
    model, tokenizer = BertForSequenceClassification.from_pretrained(folder).eval(), tiny_tokenizer()
    plug, pairs = plug_of(f"entailment: {folder}"), [("cat", "dog"), ("one", "two words"), ("q", "x")]
    for a, b in pairs:
        ways = []
        for premise, hypothesis in ((f"What? {a}", f"What? {b}"), (f"What? {b}", f"What? {a}")):
            with torch.inference_mode():
                ways.append(model(**tokenizer(premise, hypothesis, return_tensors="pt")).logits[0].softmax(-1).tolist())
        contradiction, neutral, _ = [sum(both) / 2 for both in zip(*ways, strict=True)]
        assert plug.squared_distance(a, b, "What?") == pytest.approx(contradiction + neutral / 2, abs=1e-6)
        assert plug.same(a, b, "What?") == all(max(p) == p[2] for p in ways)
    assert plug.squared_distance("cat", "Cat.", "What?") == 0


def test_semantic_density_with_an_entailment_model(tmp_path):
    """All pairs are as neutral as can be: K is 1 - 1/2 for other texts."""
    folder = tiny_bert(tmp_path / "neutral", bias=[-30.0, 30.0, -30.0])
    calls = {"prompts": ["q"] * 2, "completions": ["a", "b"], "group": [0, 0], "completion_logprobs": [[-1.0], [-1.0]]}
    assert semantic_density(**calls, equivalence={"entailment": folder}) == pytest.approx([0.75, 0.75])


def test_long_answers_are_cut_to_what_the_model_reads(tmp_path):
    plug = plug_of({"entailment": tiny_bert(tmp_path / "nli", bias=[0.0, 0.0, 5.0])})
    assert plug.same("a" * 500, "b" * 500, "q")


def test_embeddings_are_means_of_hidden_states(tmp_path):
    folder = tiny_bert(tmp_path / "bert", kind=BertModel)
    model, tokenizer = BertModel.from_pretrained(folder).eval(), tiny_tokenizer()
    with torch.inference_mode():
        u, v = (model(**tokenizer(t, return_tensors="pt")).last_hidden_state[0].mean(0) for t in ("cat", "a dog"))
    cosine = torch.nn.functional.cosine_similarity(u, v, dim=0).item()
    for offset, same in ((-0.01, True), (0.01, False)):
        plug = plug_of({"embeddings": folder, "threshold": cosine + offset})
        plug.check()
        assert plug.same("cat", "a dog", "q") is same
    assert plug.squared_distance("cat", "a dog", "q") == pytest.approx((1 - cosine) / 2, abs=1e-5)
    assert plug.squared_distance("cat", "cat", "q") == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("kind", ["entailment", "embeddings"])
def test_a_model_that_is_not_there(kind, tmp_path):
    for name in ("no/such-model", str(tmp_path), "", 3):
        with pytest.raises(ConfigError, match=f"equivalence: {kind}"):
            plug_of({kind: name}).check()


def test_a_model_that_knows_no_entailment(tmp_path):
    folder = tiny_bert(tmp_path / "stars", labels={0: "good", 1: "bad"})
    with pytest.raises(ConfigError, match="no label named entailment; its labels are good, bad"):
        plug_of({"entailment": folder}).check()
    with pytest.raises(ConfigError, match="from -1 to 1"):
        plug_of({"embeddings": folder, "threshold": 2}).check()
