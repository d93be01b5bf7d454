"""The adapter's answers are those of the model, asked one at a time with plain tensor algebra in float64."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from ratrain.errors import DataError
from ratrain.model.generate import generate

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance

from ratrain.tasks.adapter import Adapter, sampling
from ratrain.tasks.scoring import score
from tests.tasks.conftest import DOCUMENTS, LONG

VARIANTS = ["v0", "v9", "v19", "tied_ra", "v11", "modern"]  # v11 and v19 prune the cache
PLAY = "".join(document["text"] for document in DOCUMENTS)


def pairs(count=20):
    """Contexts that are empty, short, spaced and too long, each with its continuation."""
    draw = random.Random(0)
    for _ in range(count):
        start, reach, more = draw.randrange(200), draw.choice([0, 1, 7, 40, 300]), draw.choice([1, 6, 25])
        yield PLAY[start : start + reach], PLAY[start + reach : start + reach + more]


def asked(kind, arguments):
    return [Instance(kind, {}, args, at, ("t", at, 1)) for at, args in enumerate(arguments)]


def log_softmax(model, tokens):
    """float64 [T, V] of a single sequence, by the model's logits."""
    with torch.no_grad():
        return model.logits(torch.tensor([tokens]))[0].double().log_softmax(-1)


def by_hand(got, context, continuation):
    """Sum of log-probabilities and greediness of a continuation, for one request alone."""
    encode, block = got.tokenizer.encode_ordinary, got.model.spec.block_size
    bare = context.rstrip()
    told = context[len(bare) :] + continuation
    before = encode(bare) if context else [got.tokenizer.eot_token]
    tokens = encode(bare + told)[len(before) :] if context else encode(told)
    whole = [*before, *tokens][-(block + 1) :]
    rows = log_softmax(got.model, whole[:-1])[len(whole) - 1 - len(tokens) :]
    return float(rows[range(len(tokens)), tokens].sum()), rows.argmax(-1).tolist() == tokens


@pytest.mark.parametrize("name", VARIANTS)
def test_a_loglikelihood_is_that_of_the_model_alone(shaken, name):
    got, warned = shaken(name), []
    texts = list(pairs())
    adapter = Adapter(got.model, got.tokenizer, batch=7, warn=warned.append)
    answers = adapter.loglikelihood(asked("loglikelihood", texts))
    for (context, continuation), (found, greedy) in zip(texts, answers, strict=True):
        if context or continuation:
            wanted, best = by_hand(got, context, continuation)
            assert found == pytest.approx(wanted, abs=1e-5)
            assert greedy == best
    cut = sum(len(got.tokenizer.encode_ordinary(c + t)) > got.model.spec.block_size + 1 for c, t in texts)
    assert warned == [f"{cut} of 20 contexts are longer than block_size, 32: their first tokens are cut off"]


@pytest.mark.parametrize("name", ["v0", "v19"])
def test_the_models_own_choice_is_greedy_and_another_is_not(shaken, name):
    got = shaken(name)
    context = got.tokenizer.encode_ordinary("The king is")
    best = list(generate(got.model, torch.tensor(context), count=3, temperature=0))
    other = [*best[:-1], (best[-1] + 1) % got.tokenizer.eot_token]
    found = score(got.model, [(context, best), (context, other), (context, [])], batch=2)
    assert [one.greedy for one in found] == [True, False, True]
    assert found[2].loglikelihood == 0.0


@pytest.mark.parametrize("name", ["v0", "v11", "tied_ra"])
def test_the_batch_size_does_not_matter(shaken, name):
    got, texts = shaken(name), asked("loglikelihood", pairs())
    answers = [
        Adapter(got.model, got.tokenizer, batch=batch, warn=lambda _: None).loglikelihood(texts) for batch in (1, 3, 64)
    ]
    for one, three, all_ in zip(*answers, strict=True):
        assert one[0] == pytest.approx(three[0], abs=1e-5) == pytest.approx(all_[0], abs=1e-5)
        assert one[1] == three[1] == all_[1]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_rolling_loglikelihood_predicts_each_token_once(shaken, name):
    got = shaken(name)
    texts = [DOCUMENTS[1]["text"], LONG.format("duke") * 3, "", "a"]
    adapter = Adapter(got.model, got.tokenizer, batch=4, warn=lambda _: None)
    found = adapter.loglikelihood_rolling(asked("loglikelihood_rolling", [(text,) for text in texts]))
    block = got.model.spec.block_size
    for text, total in zip(texts, found, strict=True):
        tokens = [got.tokenizer.eot_token, *got.tokenizer.encode_ordinary(text)]
        wanted = 0.0
        for begin in range(1, len(tokens), block):  # the tokens predicted in one window, each with what fits before it
            end = min(begin + block, len(tokens))
            rows = log_softmax(got.model, tokens[max(0, end - 1 - block) : end - 1])[-(end - begin) :]
            wanted += float(rows[range(end - begin), tokens[begin:end]].sum())
        assert total == pytest.approx(wanted, abs=1e-5 * max(1, len(tokens)))


def test_a_rolling_loglikelihood_is_the_models_loss_over_a_text(shaken):
    got = shaken("v9")
    tokens = [got.tokenizer.eot_token, *got.tokenizer.encode_ordinary(DOCUMENTS[1]["text"])]
    assert len(tokens) <= got.model.spec.block_size
    adapter = Adapter(got.model, got.tokenizer, batch=1, warn=lambda _: None)
    (found,) = adapter.loglikelihood_rolling(asked("loglikelihood_rolling", [(DOCUMENTS[1]["text"],)]))
    with torch.no_grad():
        loss = got.model(torch.tensor([tokens[:-1]]), torch.tensor([tokens[1:]]))
    assert found == pytest.approx(-float(loss) * (len(tokens) - 1), rel=1e-6)


def test_a_continuation_longer_than_the_context_is_scored_whole(shaken):
    got, text = shaken("v0"), LONG.format("duke") * 3
    adapter = Adapter(got.model, got.tokenizer, batch=4, warn=lambda _: None)
    ((found, _),) = adapter.loglikelihood(asked("loglikelihood", [("", text)]))
    (rolling,) = adapter.loglikelihood_rolling(asked("loglikelihood_rolling", [(text,)]))
    assert found == pytest.approx(rolling, rel=1e-9)


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_generation_is_that_of_ratrain(shaken, name):
    got = shaken(name)
    adapter = Adapter(got.model, got.tokenizer, batch=4, warn=lambda _: None)
    contexts = ["The king is", LONG.format("queen") * 2, ""]
    options = {"until": [], "max_gen_toks": 40, "do_sample": False}  # beyond block_size: the cache restarts
    found = adapter.generate_until(asked("generate_until", [(context, options) for context in contexts]))
    for context, text in zip(contexts, found, strict=True):
        prompt = got.tokenizer.encode_ordinary(context) or [got.tokenizer.eot_token]
        drawn = generate(got.model, torch.tensor(prompt), count=40, temperature=0)
        tokens = list(itertools.takewhile(lambda token: token != got.tokenizer.eot_token, drawn))
        assert text == got.tokenizer.decode(tokens)


def test_generation_ends_before_the_first_until_string(shaken):
    got = shaken("v9")
    adapter = Adapter(got.model, got.tokenizer, batch=4, warn=lambda _: None)
    (whole,) = adapter.generate_until(asked("generate_until", [("The king is", {"until": [], "max_gen_toks": 12})]))
    late, early = whole[-2:], whole[3:6]
    options = {"until": [late, early, ""], "max_gen_toks": 12}
    (cut,) = adapter.generate_until(asked("generate_until", [("The king is", options)]))
    assert cut == whole[: min(whole.index(late), whole.index(early))]


def test_repeats_of_a_sampled_request_differ_and_come_back(shaken):
    got = shaken("v0")
    adapter = Adapter(got.model, got.tokenizer, batch=4, warn=lambda _: None)
    (one,) = asked("generate_until", [("The king is", {"until": [], "max_gen_toks": 8, "temperature": 1.0})])
    first = adapter.generate_until([one, one])
    assert first[0] != first[1]
    assert adapter.generate_until([one, one]) == first


def test_generation_keys_are_read_or_refused():
    assert sampling({"until": "\n", "max_new_tokens": 3}) == (["\n"], 3, 0.0, None)
    assert sampling({"do_sample": True, "top_k": 5}) == ([], 256, 1.0, 5)
    assert sampling({"do_sample": False, "temperature": 0.7})[2] == 0.0
    assert sampling({"temperature": 0.7, "top_p": 1.0})[2] == 0.7
    with pytest.raises(DataError, match="num_beams: not supported; expected do_sample"):
        sampling({"num_beams": 4})


def test_a_model_that_diverged_is_told(shaken):
    got = shaken("v0")
    got.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        score(got.model, [([1], [2])], batch=1)
