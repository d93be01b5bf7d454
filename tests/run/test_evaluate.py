"""`ratrain eval` finds the loss that the run found, and bits per byte that do not depend on the tokenizer."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from ratrain.data.tokenizer import VOCAB, bits_per_byte, byte_lengths, load_tokenizer
from ratrain.storage.run_log import read_run

TEXT = "First Citizen:\nSpeak, naïve — speak 日本 🙂.\n"


@pytest.mark.parametrize("name", VOCAB)
def test_a_token_is_as_long_as_its_bytes(name):
    tokenizer = load_tokenizer(name)
    lengths = [len(tokenizer.decode_single_token_bytes(token)) for token in range(tokenizer.n_vocab - 1)]
    assert byte_lengths(name).tolist() == [*lengths, 0]


@pytest.mark.parametrize("name", VOCAB)
def test_the_same_probability_of_a_text_is_the_same_bits_per_byte_in_every_tokenizer(name):
    tokens = np.array(load_tokenizer(name).encode_ordinary(TEXT))
    nats = math.log(256) * len(TEXT.encode())  # a uniform model of bytes
    assert bits_per_byte(nats / len(tokens), tokens, name) == pytest.approx(8.0, rel=1e-12)


def test_the_loss_is_that_of_the_runs_last_evaluation(trained, ratrain):
    run = trained("v9", "train.budget.steps=4", "eval.windows=6", "compile.scope=off")
    code, out, _ = ratrain("eval", run, "--json", "--device", "cpu")
    assert code == 0
    (held,) = json.loads(out.splitlines()[-1]).values()
    log = read_run(run)
    assert held["loss"] == log.evaluated[-1].loss
    assert held["bits_per_byte"] == log.evaluated[-1].bits_per_byte
    assert (held["step"], held["tokens"]) == (4, log.evaluated[-1].tokens)
    assert held["windows"] == log.fingerprints.windows
    code, out, _ = ratrain("eval", run, "--windows", 3, "--device", "cpu")
    assert code == 0
    assert f"{3 * 32:,}" in out


def test_a_run_that_is_not_there_is_one_message(ratrain, tmp_path):
    code, _, err = ratrain("eval", "nothing", "--out", tmp_path)
    assert (code, err.count("\n")) == (66, 1)
