"""The data of a run: a corpus, a mixture of corpora, or a recall task."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from ratrain.config.recall import MIXTURE
from ratrain.config.schema import DataSection
from ratrain.data.corpus import Corpus, open_corpus
from ratrain.data.mixture import Mixture, MixtureSampler
from ratrain.data.overlap import Overlap
from ratrain.data.recall.source import Recall, RecallSampler
from ratrain.data.sampling import Sampler
from ratrain.data.shards import TokenStream
from ratrain.errors import DataError

Data = Corpus | Mixture | Recall
Batches = Sampler | MixtureSampler | RecallSampler


def open_data(section: DataSection, *, vocab_size: int, block_size: int) -> Data:
    """Opens what `section` names. Raises as `open_corpus`."""
    sizes = {"vocab_size": vocab_size, "block_size": block_size}
    if section.is_recall:
        return Recall(section, **sizes)
    if section.source != MIXTURE:
        return open_corpus(section, **sizes)
    named = dict(sorted(section.mixture.items()))  # the recipe does not know their order
    parts = [section.model_copy(update={"source": source, "mixture": {}}) for source in named]
    corpora = [open_corpus(part, **sizes) for part in parts]
    for corpus, twin in itertools.combinations(corpora, 2):
        if corpus.fingerprint == twin.fingerprint:
            raise DataError(
                f"data.mixture: {corpus.name} and {twin.name} hold the same tokens; expected each text once"
            )
    total = sum(named.values())
    return Mixture(corpora, [weight / total for weight in named.values()])


def require_separate(data: Corpus | Mixture, most: float, *, key: str = "data.most_overlap") -> Overlap:
    """Returns the overlap of training and validation text. Raises DataError if its share is above `most`.

    `key` is the name of the setting of `most`.
    """
    found = data.overlap()
    if found.share > most:
        places = told_places(found, data.corpora if isinstance(data, Mixture) else ())
        raise DataError(
            f"{data.name}: {told_overlap(found)}, more than {key} {most:g}: its validation loss would measure memory. "
            f"{places}. Remove that text, or accept it with {key} {_above(found.share):g}"
        )
    return found


def told_overlap(found: Overlap) -> str:
    """Returns the overlap in one line."""
    grams = f"{found.found:,} of {found.ngrams:,} runs of 16 words"
    documents = f"{found.repeated:,} of {found.documents:,} documents"
    return f"{found.share:.2%} of the validation text is also training text ({grams}, {documents})"


def told_places(found: Overlap, corpora: Sequence[Corpus] = ()) -> str:
    """Returns the longest passages that occur in both texts, by their tokens; of a mixture also by its corpora."""
    spans = []
    for place in found.places:
        held, first = _within([corpus.val for corpus in corpora], place.val_token)
        trained, at = _within([corpus.train for corpus in corpora], place.train_token)
        spans.append(f"{first:,} to {first + place.tokens - 1:,}{held} (training token {at:,}{trained})")
    return "The longest passages: validation tokens " + ", ".join(spans)


def _within(streams: Sequence[TokenStream], position: int) -> tuple[str, int]:
    """Returns the name of the stream that holds a position in all of them, and the position in it."""
    for stream in streams:
        if position < len(stream):
            return f" of {stream.name}", position
        position -= len(stream)
    return "", position


def _above(share: float) -> float:
    """Returns a short number that is not below `share`."""
    return min(1.0, int(share * 1000 + 1) / 1000)
