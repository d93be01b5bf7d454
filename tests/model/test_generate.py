"""Text drawn with a cache is text drawn without one."""

from __future__ import annotations

import itertools

import pytest
import torch

from ratrain.model.generate import decode, generate

PROMPT = torch.tensor([3, 1, 4])


@pytest.fixture(scope="module")
def model(model_of):
    """Its weights are large enough that what it says depends on what it reads."""
    model = model_of(n_embd=32).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(20 if parameter.dim() > 1 else 1)
    return model


def test_a_token_at_a_time_gives_the_logits_of_the_full_forward_pass(model):
    tokens = torch.randint(100, (2, 12), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(decode(model, tokens), model.logits(tokens).detach())


def test_greedy_text_is_the_argmax_of_the_full_forward_pass(model):
    context = PROMPT.tolist()
    for token in generate(model, PROMPT, count=9, temperature=0):
        assert token == int(model.logits(torch.tensor([context]))[0, -1].argmax())
        context.append(token)
    assert len(context) == model.spec.block_size


def test_a_full_context_starts_again_from_its_second_half(model):
    context, begin = PROMPT.tolist(), 0
    for token in generate(model, PROMPT, count=40, temperature=0):
        if len(context) - begin > model.spec.block_size:
            begin = len(context) - model.spec.block_size // 2
        assert token == int(model.logits(torch.tensor([context[begin:]]))[0, -1].argmax())
        context.append(token)
    assert len(set(context)) > 10  # it says more than one thing


@pytest.mark.parametrize("prompt", [1, 11, 12, 13, 40])
def test_text_goes_on_beyond_the_context_whatever_the_prompts_length(model, prompt):
    tokens = list(generate(model, torch.zeros(prompt, dtype=torch.int64), count=50))
    assert len(tokens) == 50
    assert all(0 <= token < 100 for token in tokens)


def test_a_long_prompt_is_read_from_its_end(model):
    long = torch.randint(100, (40,), generator=torch.Generator().manual_seed(0))
    assert list(generate(model, long, count=5, seed=1)) == list(generate(model, long[-12:], count=5, seed=1))


def test_a_context_of_one_token_goes_on(model_of):
    assert len(list(generate(model_of(block_size=1).eval(), PROMPT, count=4))) == 4


def test_the_seed_decides_the_text(model):
    first, again, other = (list(generate(model, PROMPT, count=20, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_drawing_leaves_the_global_generator_alone(model):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    list(generate(model, PROMPT, count=5))
    assert torch.equal(state, torch.get_rng_state())


def test_top_k_of_one_is_greedy(model):
    one = list(generate(model, PROMPT, count=5, top_k=1))
    assert one == list(generate(model, PROMPT, count=5, temperature=0))


def test_only_the_likeliest_k_are_drawn(model):
    likely = set(model.logits(PROMPT[None])[0, -1].topk(3).indices.tolist())
    drawn = {next(generate(model, PROMPT, count=1, temperature=5.0, top_k=3, seed=seed)) for seed in range(100)}
    assert drawn == likely


def test_tokens_come_one_by_one(model):
    assert len(list(itertools.islice(generate(model, PROMPT, count=10**9), 3))) == 3


def test_an_empty_prompt_is_refused(model):
    with pytest.raises(ValueError, match="the prompt holds no token"):
        next(generate(model, torch.tensor([], dtype=torch.int64), count=1))
