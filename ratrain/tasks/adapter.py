"""The model interface of lm-evaluation-harness over a model of ratrain. Importing this module imports lm_eval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tiktoken
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from ratrain.errors import DataError
from ratrain.model.generate import generate
from ratrain.model.gpt2 import GPT2
from ratrain.tasks.scoring import Pair, Scored, score

_MOST = 256  # tokens that a request draws, if it does not say
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # names of that number, by rank


class Adapter(TemplateLM):
    """A model in eval mode, with its tokenizer, as lm_eval's LM. Weights and arithmetic are those of the model.

    Text is encoded as in training, so that "<|endoftext|>" in it is no special token. An empty context is the
    end-of-text token. `warn` receives one message per kind of request, with the number of contexts that were too long.
    """

    def __init__(self, model: GPT2, tokenizer: tiktoken.Encoding, *, batch: int, warn: Callable[[str], None]):
        super().__init__()
        self.model, self.encoding, self.batch, self.warn = model, tokenizer, batch, warn
        self.done: Callable[[int], None] = lambda count: None  # receives the answers since the last call
        self.cut = 0  # requests so far whose context did not fit

    @property
    def eot_token_id(self) -> int:
        return self.encoding.eot_token

    @property
    def max_length(self) -> int:
        return self.model.spec.block_size

    @property
    def tokenizer_name(self) -> str:
        return self.encoding.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Encodes text; no token is added."""
        return self.encoding.encode_ordinary(string)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Scores (texts, context, continuation). A context that does not fit loses its first tokens; a continuation
        longer than block_size is scored window by window, as a rolling one, after the context's last token."""
        windows = [self._windows(context, told) for _, context, told in requests]
        cut = sum(len(context) + len(told) > self.max_length + 1 for _, context, told in requests)
        self._warn_of(cut, len(requests))
        return [(found.loglikelihood, found.greedy) for found in self._scored(windows)]

    def _windows(self, context: Sequence[int], told: Sequence[int]) -> list[Pair]:
        """Returns the one window of a pair, or those of a continuation that is longer than block_size."""
        room = self.max_length + 1 - len(told)
        return [(context[-room:], told)] if room > 0 else self._rolling(context[-1], told)

    def _rolling(self, prefix: int, told: Sequence[int]) -> list[Pair]:
        """Returns windows in which each token is predicted once, with as much context as fits."""
        found = get_rolling_token_windows(list(told), prefix, self.max_length, 1)
        return [make_disjoint_window(window) for window in found]

    def _scored(self, windows: Sequence[Sequence[Pair]]) -> list[Scored]:
        """Scores the windows of each request, all in common batches, and joins them by request."""
        each = iter(score(self.model, [pair for of in windows for pair in of], batch=self.batch, done=self.done))
        joined = [[next(each) for _ in of] for of in windows]
        return [Scored(sum(one.loglikelihood for one in of), all(one.greedy for one in of)) for of in joined]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Returns the log-likelihood in nats of each whole text after the end-of-text token."""
        texts = [self.tok_encode(request.args[0]) for request in requests]
        return [found.loglikelihood for found in self._scored([self._rolling(self.eot_token_id, of) for of in texts])]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Draws a continuation of each context, up to one of its until-strings, the end-of-text token or its limit.

        Requests are drawn one at a time, with the KV cache of the variant; a full cache restarts from its second half.
        The seed of a sampled request is its place in the list, so that repeats differ and another run of the same task
        draws alike. Raises DataError for a generation key that is not supported.
        """
        contexts = [self.tok_encode(request.args[0]) or [self.eot_token_id] for request in requests]
        self._warn_of(sum(len(context) > self.max_length for context in contexts), len(contexts))
        found = []
        for seed, (request, context) in enumerate(zip(requests, contexts, strict=True)):
            options: Any = request.arguments[1]
            found.append(self._drawn(context, options, seed))
            self.done(1)
        return found

    def _drawn(self, context: Sequence[int], options: Mapping[str, Any], seed: int) -> str:
        until, limit, temperature, top_k = sampling(options)
        prompt = torch.tensor(context, device=self.model.wte.weight.device)
        tokens: list[int] = []
        text = ""
        for token in generate(self.model, prompt, count=limit, temperature=temperature, top_k=top_k, seed=seed):
            if token == self.eot_token_id:
                break
            tokens.append(token)
            text = self.encoding.decode(tokens)  # whole: a character may have several tokens
            if any(stop in text for stop in until):
                return text[: min(text.index(stop) for stop in until if stop in text)]
        return text

    def _warn_of(self, cut: int, count: int) -> None:
        self.cut += cut
        if cut:
            block = self.max_length
            self.warn(
                f"{cut:,} of {count:,} contexts are longer than block_size, {block}: their first tokens are cut off"
            )


def sampling(options: Mapping[str, Any]) -> tuple[list[str], int, float, int | None]:
    """Reads lm_eval's generation keys: until-strings, most tokens, temperature (0: greedy) and top_k.

    As in lm_eval, drawing is greedy unless `do_sample` is set or the temperature is above 0. Raises DataError.
    """
    known = {"until", "do_sample", "temperature", "top_k", *_LIMITS}
    harmless = {"top_p": (1, 1.0, None), "num_return_sequences": (1,), "use_cache": (True, False)}
    unknown = [key for key, value in options.items() if key not in known and value not in harmless.get(key, ())]
    if unknown:
        raise DataError(f"generation_kwargs: {', '.join(unknown)}: not supported; expected {', '.join(sorted(known))}")
    until = options.get("until") or []
    limit = next((int(options[key]) for key in _LIMITS if options.get(key) is not None), _MOST)
    temperature = float(options.get("temperature") or 0.0)
    drawn = options.get("do_sample")
    if drawn and not temperature:
        temperature = 1.0
    top_k = int(options["top_k"]) if options.get("top_k") else None
    words = [until] if isinstance(until, str) else list(until)
    return [word for word in words if word], limit, 0.0 if drawn is False else temperature, top_k
