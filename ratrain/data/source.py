"""The data of a run: a corpus, a mixture of corpora, or a recall task."""

from __future__ import annotations

from ratrain.config.schema import MIXTURE, DataSection
from ratrain.data.corpus import Corpus, open_corpus
from ratrain.data.mixture import Mixture, MixtureSampler
from ratrain.data.overlap import Overlap
from ratrain.data.recall.source import Recall, RecallSampler
from ratrain.data.sampling import Sampler
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
    total = sum(section.mixture.values())
    parts = [section.model_copy(update={"source": source, "mixture": {}}) for source in section.mixture]
    weights = [weight / total for weight in section.mixture.values()]
    return Mixture([open_corpus(part, **sizes) for part in parts], weights)


def require_separate(data: Corpus | Mixture, most: float) -> Overlap:
    """Returns the overlap of training and validation text. Raises DataError if its share is above `most`."""
    found = data.overlap()
    if found.share > most:
        raise DataError(
            f"{data.name}: {told_overlap(found)}, more than data.most_overlap = {most:g}: its validation loss would"
            f" measure memory. {told_places(found)}. Remove that text, or accept it with data.most_overlap ="
            f" {_above(found.share):g}"
        )
    return found


def told_overlap(found: Overlap) -> str:
    """Returns the overlap in one line."""
    return (
        f"{found.share:.2%} of the validation text is also training text ({found.found:,} of {found.ngrams:,} 32-grams,"
        f" {found.repeated:,} of {found.documents:,} documents)"
    )


def told_places(found: Overlap) -> str:
    """Returns the longest passages that occur in both texts, by their tokens."""
    spans = ((f"{p.val_token:,} to {p.val_token + p.tokens - 1:,}", f"{p.train_token:,}") for p in found.places)
    return "The longest passages: validation tokens " + ", ".join(f"{a} (training token {b})" for a, b in spans)


def _above(share: float) -> float:
    """Returns a short number that is not below `share`."""
    return min(1.0, int(share * 1000 + 1) / 1000)
