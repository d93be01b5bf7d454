"""Corpora, the stateless sampler, validation windows and the n-gram anchors."""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from ratrain.config.schema import DataSection
from ratrain.data import corpus as data
from ratrain.data.corpus import Sampler, ngram_losses, open_corpus, sample_rows, validation_clusters, validation_windows
from ratrain.data.ngram import ngram_nats
from ratrain.data.shards import Shard, TokenStream, write_meta, write_shard
from ratrain.errors import DataError, ManifestError, MissingError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ratrain"


@pytest.fixture(scope="module")
def corpora_by_name(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return {
            name: open_corpus(DataSection(tokenizer=name), vocab_size=size)
            for name, size in (("gpt2", 50257), ("shakespeare2k", 2048))
        }


def stream(tokens) -> TokenStream:
    return TokenStream([Shard(Path("x.bin"), np.asarray(tokens, np.uint16))], name="x")


def folder_of(tmp_path, **files):
    folder = tmp_path / "tokens"
    folder.mkdir()
    for name, tokens in files.items():
        np.asarray(tokens, "<u2").tofile(folder / f"{name}.bin")
    return folder


def opened(folder, *, tokenizer="shakespeare2k", vocab_size=2048, block_size=0):
    section = DataSection(source=str(folder), tokenizer=tokenizer)
    return open_corpus(section, vocab_size=vocab_size, block_size=block_size)


# the embedded corpus


@pytest.mark.parametrize(("name", "train", "val"), [("gpt2", 1_496_768, 69_269), ("shakespeare2k", 1_776_600, 83_448)])
def test_the_embedded_corpus_has_the_published_size(corpora_by_name, name, train, val):
    corpus = corpora_by_name[name]
    assert (len(corpus.train), len(corpus.val)) == (train, val)


@pytest.mark.parametrize("name", ["gpt2", "shakespeare2k"])
def test_every_work_follows_an_end_of_text(corpora_by_name, name):
    corpus = corpora_by_name[name]
    eot = corpus.tokenizer.eot_token
    for split, works in ((corpus.train, 40), (corpus.val, 2)):
        tokens = split.read(0, len(split))
        assert tokens[0] == eot
        assert np.count_nonzero(tokens == eot) == works
    text = corpus.tokenizer.decode(corpus.val.read(0, len(corpus.val)).tolist())
    assert [work.split("\n")[0] for work in text.split("<|endoftext|>")[1:]] == [
        "MACBETH",
        "TWELFTH NIGHT; OR, WHAT YOU WILL",
    ]


def test_the_second_opening_reads_the_cache(cache, monkeypatch):
    first = open_corpus(DataSection(), vocab_size=2048)
    monkeypatch.setattr(data, "_make_embedded", lambda *_: pytest.fail("tokenised again"))
    second = open_corpus(DataSection(), vocab_size=2048)
    assert second.fingerprint == first.fingerprint
    assert np.array_equal(second.train.read(0, len(second.train)), first.train.read(0, len(first.train)))


def test_a_damaged_cache_is_made_again(cache):
    first = open_corpus(DataSection(), vocab_size=2048)
    (shard,) = cache.glob("shakespeare-*/train_000000.bin")
    content = bytearray(shard.read_bytes())
    content[5000] ^= 1
    shard.write_bytes(content)
    again = open_corpus(DataSection(), vocab_size=2048)
    assert np.array_equal(again.train.read(0, 5000), first.train.shards[0].tokens[:5000])
    assert shard.read_bytes() != content


def test_a_cache_that_cannot_be_written_changes_nothing(cache, corpora_by_name):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    corpus = open_corpus(DataSection(), vocab_size=2048)
    assert corpus.fingerprint == corpora_by_name["shakespeare2k"].fingerprint
    assert len(corpus.train) == len(corpora_by_name["shakespeare2k"].train)


def test_tokenizers_have_fingerprints_of_their_own(corpora_by_name):
    assert len({corpus.fingerprint for corpus in corpora_by_name.values()}) == 2


# folders of shards


def test_a_nanogpt_folder_opens(tmp_path):
    corpus = opened(folder_of(tmp_path, train=range(100), val=range(50)))
    assert (len(corpus.train), len(corpus.val)) == (100, 50)


def test_llmc_shards_are_joined_in_the_order_of_their_names(tmp_path):
    folder = folder_of(tmp_path)
    for number in (2, 1):
        write_shard(folder / f"interval_train_{number:06d}.bin", np.full(10, number, np.uint16))
    write_shard(folder / "interval_val_000000.bin", np.arange(10, dtype=np.uint16))
    corpus = opened(folder)
    assert corpus.train.read(8, 4).tolist() == [1, 1, 2, 2]
    assert len(corpus.val) == 10


def test_a_prepared_folder_opens_by_its_meta(tmp_path):
    corpus = opened(prepared(folder_of(tmp_path)))
    assert corpus.train.read(0, 10).tolist() == list(range(10))


def prepared(folder, tokenizer="shakespeare2k", vocab_size=2048):
    splits = {s: [write_shard(folder / f"{s}_000000.bin", np.arange(10, dtype=np.uint16))] for s in ("train", "val")}
    write_meta(folder, tokenizer=tokenizer, vocab_size=vocab_size, splits=splits)
    return folder


def test_a_fingerprint_follows_the_tokens_and_not_the_place(tmp_path):
    folder = folder_of(tmp_path, train=range(100), val=range(50))
    before = opened(folder).fingerprint
    moved = folder.rename(tmp_path / "moved")
    assert opened(moved).fingerprint == before
    np.arange(1, 101, dtype="<u2").tofile(moved / "train.bin")
    assert opened(moved).fingerprint != before


def test_another_vocabulary_names_the_key_to_set():
    with pytest.raises(ManifestError) as caught:
        open_corpus(DataSection(tokenizer="gpt2"), vocab_size=2048)
    assert "data.tokenizer: 'gpt2' has 50257 tokens but model.vocab_size is 2048; set model.vocab_size = 50257" in str(
        caught.value
    )


def test_shards_of_another_tokenizer_are_refused(tmp_path):
    folder = prepared(folder_of(tmp_path), "gpt2", 50257)
    with pytest.raises(DataError, match=r"made with tokenizer 'gpt2' but data.tokenizer = 'shakespeare2k'"):
        opened(folder)


def test_an_id_outside_the_vocabulary_is_refused(tmp_path):
    folder = folder_of(tmp_path, train=[1, 2, 2048], val=range(50))
    with pytest.raises(DataError, match=r"train\.bin: token 2 is 2048"):
        opened(folder)


def test_a_file_that_passed_is_not_scanned_again_until_it_changes(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, train=range(100), val=range(50))
    opened(folder)
    scanned = []
    monkeypatch.setattr(data, "check_ids", lambda shard, **_: scanned.append(shard.path.name))
    opened(folder)
    assert scanned == []
    os.utime(folder / "val.bin", ns=(1, 1))
    opened(folder)
    assert scanned == ["val.bin"]


def test_a_flipped_bit_in_a_prepared_shard_is_refused(tmp_path):
    folder = prepared(folder_of(tmp_path))
    content = bytearray((folder / "val_000000.bin").read_bytes())
    content[-1] ^= 1
    (folder / "val_000000.bin").write_bytes(content)
    with pytest.raises(DataError, match=r"val_000000\.bin: SHA-256 differs"):
        opened(folder)


def test_a_shard_that_meta_counts_otherwise_is_refused(tmp_path):
    folder = prepared(folder_of(tmp_path))
    write_shard(folder / "val_000000.bin", np.arange(9, dtype=np.uint16))
    with pytest.raises(DataError, match=r"has 9 tokens, meta\.json says 10"):
        opened(folder)


def test_random_bytes_among_llmc_shards_are_refused(tmp_path):
    folder = prepared(folder_of(tmp_path))
    (folder / "meta.json").unlink()
    (folder / "train_000001.bin").write_bytes(os.urandom(2048))
    with pytest.raises(DataError, match=r"train_000001\.bin: is no token file"):
        opened(folder)


def test_two_sets_in_one_folder_are_refused(tmp_path):
    folder = folder_of(tmp_path, train=range(9), val=range(9))
    write_shard(folder / "a_train_1.bin", np.arange(10, dtype=np.uint16))
    with pytest.raises(DataError, match=r"holds train\.bin beside 1 more train shards"):
        opened(folder)


def test_a_character_level_set_is_refused(tmp_path):
    folder = folder_of(tmp_path, train=range(9), val=range(9))
    (folder / "meta.pkl").write_bytes(b"")
    with pytest.raises(DataError, match="own vocabulary"):
        opened(folder)


def test_missing_data_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(MissingError, match=f"ratrain prepare INPUT... --out {tmp_path / 'none'}"):
        opened(tmp_path / "none")
    with pytest.raises(MissingError, match=r"holds no \*val\*\.bin; `ratrain prepare"):
        opened(folder_of(tmp_path, train=range(9)))


def test_a_text_file_as_source_names_the_command_for_it(tmp_path):
    (tmp_path / "input.txt").write_text("hello")
    with pytest.raises(DataError, match=r"is not a folder.*ratrain prepare .*input\.txt"):
        opened(tmp_path / "input.txt")


def test_too_few_tokens_for_one_window_are_refused(tmp_path):
    folder = folder_of(tmp_path, train=range(100), val=range(8))
    assert opened(folder, block_size=7)
    with pytest.raises(DataError, match=r"\(val\): 8 tokens; model.block_size = 8 needs 9"):
        opened(folder, block_size=8)
    with pytest.raises(DataError, match="needs 9"):
        Sampler(stream(range(8)), seed=1, batch=1, block_size=8)


# sampling


def test_a_row_depends_on_seed_step_and_row_alone():
    whole = sample_rows(1000, seed=3, step=5, batch=64, block_size=8)
    for batch in (1, 7, 63):
        assert np.array_equal(sample_rows(1000, seed=3, step=5, batch=batch, block_size=8), whole[:batch])
    assert not np.array_equal(sample_rows(1000, seed=3, step=6, batch=64, block_size=8), whole)
    assert not np.array_equal(sample_rows(1000, seed=4, step=5, batch=64, block_size=8), whole)


def test_offsets_are_the_scaled_draws_of_philox():
    """The documented definition, in python integers."""
    for total, step in ((1000, 0), (10**11, 7)):
        draws = np.random.Philox(key=9, counter=step << 128).random_raw(50)
        expected = [int(x) * (total - 16) // 2**64 for x in draws]
        assert sample_rows(total, seed=9, step=step, batch=50, block_size=16).tolist() == expected


def test_every_window_is_as_likely_as_any_other():
    windows, steps, batch = 97, 400, 256
    rows = [sample_rows(windows + 8, seed=1, step=step, batch=batch, block_size=8) for step in range(steps)]
    counts = np.bincount(np.concatenate(rows), minlength=windows)
    expected = steps * batch / windows
    chi_square = ((counts - expected) ** 2 / expected).sum()  # mean 96, deviation 13.9
    assert len(counts) == windows
    assert abs(chi_square - (windows - 1)) < 4 * math.sqrt(2 * (windows - 1))


def test_rows_and_steps_are_uncorrelated():
    rows = np.stack([sample_rows(10**6, seed=1, step=step, batch=256, block_size=8) for step in range(64)]) / 10**6
    for a, b in ((rows[:-1], rows[1:]), (rows[:, :-1], rows[:, 1:])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / math.sqrt(a.size)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 12])
def test_ranks_together_take_the_same_rows_for_any_world_size(world):
    tokens = stream(range(1000))
    whole = Sampler(tokens, seed=1, batch=12, block_size=8).batch(4)
    ranks = [Sampler(tokens, seed=1, batch=12, block_size=8, rank=r, world=world).batch(4) for r in range(world)]
    for part, joined in zip(zip(*ranks, strict=True), whole, strict=True):
        assert torch.equal(torch.cat(part), joined)


def test_targets_are_the_inputs_moved_by_one():
    inputs, targets = Sampler(stream(range(1000)), seed=1, batch=5, block_size=8).batch(0)
    assert inputs.shape == targets.shape == (5, 8)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, inputs + 1)


def test_a_stream_of_one_window_is_always_that_window():
    inputs, _ = Sampler(stream(range(9)), seed=1, batch=3, block_size=8).batch(11)
    assert inputs.tolist() == [list(range(8))] * 3


def test_ids_that_were_overwritten_after_they_were_checked_are_told():
    sampler = Sampler(stream(range(20)), seed=1, batch=4, block_size=8, vocab_size=10)
    with pytest.raises(DataError, match="of a vocabulary of 10: a file was overwritten while in use"):
        for step in range(20):
            sampler.batch(step)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ManifestError, match=r"train\.batch: 10 sequences do not divide among 4 processes"):
        Sampler(stream(range(99)), seed=1, batch=10, block_size=8, rank=0, world=4)


@pytest.mark.parametrize("total", [9, 10, 16, 17, 18, 100, 1000])
@pytest.mark.parametrize("count", [1, 2, 5, 1000])
def test_validation_windows_predict_no_token_twice(total, count):
    windows = validation_windows(stream(range(total)), block_size=8, count=count)
    assert len(windows) == min(count, (total - 1) // 8)
    targets = windows[:, 1:].flatten().tolist()
    assert len(set(targets)) == len(targets)
    assert torch.equal(windows, windows[:, :1] + torch.arange(9))
    if len(windows) > 1:
        assert (int(windows[0, 0]), int(windows[-1, -1])) == (0, total - 1)


@pytest.mark.parametrize("scan", [3, 1 << 24])
@pytest.mark.parametrize("every", [7, 40, 300])
def test_clusters_are_documents_where_there_are_many_and_passages_where_not(monkeypatch, scan, every):
    monkeypatch.setattr("ratrain.data.sampling._SCAN", scan)
    tokens, eot = [9 if at % every == 0 else at % 9 for at in range(1000)], 9
    cut = {"block_size": 8, "count": 50}
    clusters = validation_clusters(stream(tokens), **cut, eot=eot)
    document = np.cumsum(np.array(tokens) == eot)  # of each token
    places = validation_windows(stream(range(1000)), **cut)[:, 1:].numpy()
    wanted = document[places] if len(set(document[places].flatten())) >= 10 else np.arange(50)[:, None].repeat(8, 1)
    assert clusters.unit == ("document" if every < 300 else "passage")
    numbers = {number: at for at, number in enumerate(sorted(set(wanted.flatten())))}
    assert clusters.of.tolist() == [[numbers[number] for number in row] for row in wanted]
    losses = torch.arange(400.0).view(50, 8)
    first = clusters.of == 0
    assert clusters.means(losses)[0] == losses[first].double().mean()
    assert clusters.sizes[0] == first.sum()


# n-gram anchors


@pytest.mark.parametrize(
    ("name", "size", "uniform", "unigram", "bigram"),
    [("gpt2", 50257, 10.825, 6.549, 5.124), ("shakespeare2k", 2048, 7.625, 6.076, 4.463)],
)
def test_anchors_on_the_whole_validation_split(corpora_by_name, name, size, uniform, unigram, bigram):
    corpus = corpora_by_name[name]
    window = torch.from_numpy(corpus.val.read(0, len(corpus.val)).astype(np.int64))[None]
    losses = ngram_losses(corpus, window, size)
    assert losses == pytest.approx({"uniform": uniform, "unigram": unigram, "bigram": bigram}, abs=6e-4)


def plain_kneser_ney(text, v):
    """P(second | first) by the textbook, one loop per sum."""
    pairs = Counter(itertools.pairwise(text))
    contexts = Counter(b for _, b in pairs)

    def discount(counts):
        ones, twos = (sum(c == n for c in counts) for n in (1, 2))
        return min(max(ones / max(ones + 2 * twos, 1), 0.1), 0.9)

    d, e = discount(pairs.values()), discount(contexts.values())

    def lower(b):
        return max(contexts[b] - e, 0) / len(pairs) + e * len(contexts) / len(pairs) / v

    def probability(a, b):
        total = sum(n for (x, _), n in pairs.items() if x == a)
        if not total:
            return lower(b)
        followers = sum(x == a for x, _ in pairs)
        return max(pairs[a, b] - d, 0) / total + d * followers / total * lower(b)

    return probability


def test_the_bigram_is_kneser_ney_and_sums_to_one():
    v = 12
    text = np.random.default_rng(0).zipf(1.6, 200).clip(1, v - 2).tolist()  # v - 1 never occurs: an unseen context
    model = plain_kneser_ney(text, v)
    windows = np.array([[a, b] for a in range(v) for b in range(v)])
    for a in range(v):
        assert sum(model(a, b) for b in range(v)) == pytest.approx(1)
    expected = -np.mean([math.log(model(a, b)) for a, b in windows.tolist()])
    assert ngram_nats(np.array(text, np.uint16), windows, v)["bigram"] == pytest.approx(expected)


def test_losses_are_remembered_for_the_same_windows_only(cache, corpora_by_name, monkeypatch):
    corpus = corpora_by_name["shakespeare2k"]
    windows = validation_windows(corpus.val, block_size=64, count=8)
    losses = ngram_losses(corpus, windows, 2048)
    monkeypatch.setattr(data, "ngram_nats", lambda *_: {"made": "again"})
    assert ngram_losses(corpus, windows, 2048) == losses
    assert ngram_losses(corpus, windows[:4], 2048) == {"made": "again"}
