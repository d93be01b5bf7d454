"""Training text in the validation text is found, located and refused, also in other case, spacing and tokens."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from ratrain.config.schema import DataSection
from ratrain.data import overlap
from ratrain.data.corpora import read, split_works
from ratrain.data.overlap import LENGTH, Place, find_overlap
from ratrain.data.shards import Shard, TokenStream
from ratrain.data.source import open_data, require_separate
from ratrain.data.tokenizer import VOCAB, load_tokenizer
from ratrain.errors import DataError

NAME = "shakespeare2k"
EOT = VOCAB[NAME] - 1
TRAIN, VAL = split_works(read("shakespeare.txt").decode())


def encoded(documents):
    """Tokens of the documents, each behind the end-of-text token."""
    encoding = load_tokenizer(NAME)
    return np.concatenate([np.array([EOT, *encoding.encode_ordinary(text)], np.uint16) for text in documents])


def stream(tokens, *, shards=1):
    parts = np.array_split(np.asarray(tokens, np.uint16), shards)
    return TokenStream([Shard(f"part {at}", part) for at, part in enumerate(parts)], name="a stream")


def found(train, val, **options):
    return find_overlap([stream(train, **options)], [stream(val, **options)], NAME, eot=EOT)


def letters(text):
    return "".join(letter for letter in text.casefold() if letter.isalnum())


def by_hand(train, val):
    """The n-grams and documents of val that occur in train, by sets of strings."""
    encoding = load_tokenizer(NAME)

    def words(tokens):
        text = encoding.decode(tokens.tolist()).replace("<|endoftext|>", " ")
        return [word for part in re.split(r"(?<=\W)|(?=\W)|_", text) if (word := letters(part))]

    def documents(tokens):
        cuts = [*np.flatnonzero(tokens == EOT), len(tokens)]
        parts = [tokens[a + 1 : b] for a, b in itertools.pairwise(cuts)]
        return [letters(encoding.decode(part.tolist())) for part in parts]

    def grams(tokens):
        kept = words(tokens)
        return [tuple(kept[at : at + LENGTH]) for at in range(len(kept) - LENGTH + 1)]

    known, texts = set(grams(train)), {*documents(train)}
    return sum(gram in known for gram in grams(val)), sum(text in texts for text in documents(val) if text)


@pytest.mark.parametrize("shards", [1, 7])
@pytest.mark.parametrize("chunk", [61, 4096, 2**20])
def test_it_counts_the_n_grams_and_documents_that_sets_of_strings_count(chunk, shards, monkeypatch):
    monkeypatch.setattr(overlap, "_CHUNK", chunk)
    text = TRAIN[0][:6000]
    own = [VAL[0][:1500], text[1000:2500], VAL[1][200:900], "ok", text[4000:4050]]
    train, val = encoded([text[:3000], text[3000:], "OK!", VAL[1][:500]]), encoded(own)
    got = found(train, val, shards=shards)
    assert (got.found, got.repeated) == by_hand(train, val)
    assert got.found > 100
    assert got.repeated == 1
    assert got.documents == 5


def test_text_that_was_never_seen_is_not_found():
    got = found(encoded(TRAIN[:3]), encoded(VAL))
    assert (got.found, got.repeated, got.share, got.places) == (0, 0, 0.0, ())


@pytest.mark.parametrize(
    "change", [str.upper, str.lower, lambda t: re.sub(r"\s+", "  ", t), lambda t: t.replace(",", " -")]
)
def test_a_repeated_document_is_found_in_other_case_spacing_and_punctuation(change):
    text = VAL[0][1000:5000]
    got = found(encoded([TRAIN[0], change(text), TRAIN[1]]), encoded([VAL[1], text]))
    assert got.repeated == 1
    first = len(encoded([VAL[1]]))
    train_token = len(encoded([TRAIN[0]]))
    place = Place(first, len(encoded([text])), train_token)
    assert got.places == (place,)


def test_a_planted_share_is_measured_and_located_across_chunks_and_shards(monkeypatch):
    monkeypatch.setattr(overlap, "_CHUNK", 5000)
    train, val = encoded(TRAIN[:4]), encoded(VAL)
    planted = len(val) // 100
    train[30_000 : 30_000 + planted] = val[20_000 : 20_000 + planted]
    got = found(train, val, shards=5)
    assert got.share == pytest.approx(0.01, rel=0.1)
    place = got.places[0]
    assert abs(place.val_token - 20_000) <= 3  # tokens without letters do not count
    assert abs(place.train_token - 30_000) <= 3
    assert abs(place.tokens - planted) <= 6
    assert place.val_token - 20_000 == place.train_token - 30_000


def test_a_sample_of_the_n_grams_finds_the_share_in_bounded_memory(monkeypatch):
    train, val = encoded(TRAIN[:4]), encoded(VAL)
    train[30_000:50_000] = val[20_000:40_000]
    whole = found(train, val)
    monkeypatch.setattr(overlap, "_SAMPLE", 4000)
    part = found(train, val)
    assert 1000 < part.ngrams < 4000 < whole.ngrams
    assert part.share == pytest.approx(whole.share, abs=4 * np.sqrt(whole.share / part.ngrams))
    assert abs(part.places[0].val_token - 20_000) < 1000


def test_the_same_text_on_both_sides_is_found_whole():
    val = encoded(VAL)
    same = found(val, val)
    assert same.share == 1.0
    assert (same.found, same.repeated) == (same.ngrams, same.documents)


def test_characters_divided_among_tokens_and_letters_beyond_ascii_count():
    text = "Größe und Maß: naïve façade, Ελληνικά γράμματα και 漢字 12345 " * 3
    got = found(encoded(["other words", text.upper().replace("SS", "ß")]), encoded([text]))
    assert got.documents == 1
    again = found(encoded(["other words", text]), encoded([text.replace(":", "")]))
    assert again.repeated == 1


def write_folder(folder, train, val):
    folder.mkdir()
    for split, tokens in (("train", train), ("val", val)):
        tokens.astype("<u2").tofile(folder / f"{split}.bin")
    return DataSection(source=str(folder))


def test_a_corpus_is_refused_above_the_accepted_share_and_the_message_locates_the_text(tmp_path):
    val = encoded(VAL)
    train = np.concatenate([encoded(TRAIN[:1]), val[:2000]])
    section = write_folder(tmp_path / "leaking", train, val)
    data = open_data(section, vocab_size=VOCAB[NAME], block_size=16)
    with pytest.raises(DataError) as error:
        require_separate(data, 0.01)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'leaking'}: 1.9")
    assert "validation tokens 1 to 1,9" in message
    assert f"(training token {len(encoded(TRAIN[:1])) + 1:,})" in message
    accepted = float(re.search(r"data.most_overlap (\S+)$", message)[1])
    got = require_separate(data, accepted)
    assert 0.019 < got.share <= accepted


def test_the_result_is_kept_and_read_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    val = encoded(VAL)
    section = write_folder(tmp_path / "leaking", np.concatenate([encoded(TRAIN[:1]), val[:2000]]), val)
    first = open_data(section, vocab_size=VOCAB[NAME], block_size=16).overlap()
    monkeypatch.setattr("ratrain.data.corpus.find_overlap", None)
    assert open_data(section, vocab_size=VOCAB[NAME], block_size=16).overlap() == first
    assert first.places


def test_a_change_in_the_middle_of_a_file_is_seen_although_the_fingerprint_covers_its_ends_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("ratrain.data.corpus._ENDS", 64)
    val = encoded(VAL)
    section = write_folder(tmp_path / "raw", encoded(TRAIN[:2]), val)
    clean = open_data(section, vocab_size=VOCAB[NAME], block_size=16)
    assert clean.overlap().share == 0
    file = tmp_path / "raw" / "train.bin"
    tokens = np.fromfile(file, "<u2")
    tokens[20_000:25_000] = val[10_000:15_000]
    tokens.tofile(file)
    planted = open_data(section, vocab_size=VOCAB[NAME], block_size=16)
    assert planted.fingerprint == clean.fingerprint
    assert planted.overlap().share > 0.05


@pytest.mark.parametrize(
    "change", [str.upper, str.lower, str.title, lambda t: " ".join(t.split()), lambda t: t.replace(",", " -")]
)
@pytest.mark.parametrize("name", VOCAB)
def test_a_passage_inside_other_text_is_found_in_other_case_spacing_and_punctuation(change, name):
    encoding, passage = load_tokenizer(name), VAL[0][1000:5000]

    def ids(text):
        return stream(np.array([encoding.eot_token, *encoding.encode_ordinary(text)]))

    train, val = ids(TRAIN[0][:9000] + " " + change(passage)), ids(VAL[1][:9000] + " " + passage)
    same = ids(TRAIN[0][:9000] + " " + passage)
    options = {"tokenizer": name, "eot": encoding.eot_token}
    assert find_overlap([train], [val], **options).found >= 0.97 * find_overlap([same], [val], **options).found > 500
