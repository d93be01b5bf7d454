"""Named text sets, streamed from the Hugging Face hub as Parquet through the `datasets` library.

A set is pinned to the commit at which its preparation began: later changes on the hub do not affect the output.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ratrain.data.cache import cache_folder
from ratrain.data.fields import text_of
from ratrain.errors import DataError, UnavailableError


@dataclass(frozen=True)
class HubSet:
    """The hub repository of a set, and the pattern of its files of training text."""

    repository: str
    files: str  # a pattern of paths


@dataclass(frozen=True)
class HubFile:
    """A Parquet file on the hub, at one commit."""

    url: str
    bytes: int

    def __str__(self) -> str:
        return self.url


SETS = {
    "finewebedu": HubSet("HuggingFaceFW/fineweb-edu", r"sample/10BT/.*\.parquet"),
    "openwebtext": HubSet("Skylion007/openwebtext", r"(.*/)?train-[^/]*\.parquet"),
    "tinystories": HubSet("roneneldan/TinyStories", r"data/train-[^/]*\.parquet"),
}


def hub_files(name: str, recorded: Sequence[Mapping[str, Any]] = ()) -> list[HubFile]:
    """Lists the files of the set `name`, in order: the `recorded` files on resumption, else the current files.

    Raises UnavailableError if the hub cannot be reached or the set has no files.
    """
    place = SETS[name]
    if recorded and all(str(entry["name"]).startswith(f"hf://datasets/{place.repository}@") for entry in recorded):
        return [HubFile(entry["name"], entry["bytes"]) for entry in recorded]
    api = _library("huggingface_hub").HfApi()
    try:
        info = api.dataset_info(place.repository, files_metadata=True)
    except Exception as error:  # the library's, its transport's and the socket's own, of many kinds
        raise UnavailableError(
            f"{name}: {place.repository} cannot be looked up: {_told(error)}; {_OTHERWISE}"
        ) from error
    found = sorted(
        (file.rfilename, file.size or 0) for file in info.siblings if re.fullmatch(place.files, file.rfilename)
    )
    if not found:
        raise UnavailableError(
            f"{name}: {place.repository} has no file {place.files} at commit {info.sha}; {_OTHERWISE}"
        )
    return [HubFile(f"hf://datasets/{place.repository}@{info.sha}/{path}", size) for path, size in found]


_OTHERWISE = "if you have its files: ratrain prepare FILES... --out DIR takes .parquet and .jsonl"


def read_parquet(source: Path | HubFile, field: str, skip: int = 0) -> Iterator[tuple[int, str | None]]:
    """Yields (number, text) of each row after the first `skip`, numbered from 1; None for null. Skips blank rows.

    Raises UnavailableError (library missing, hub not reached) and DataError.
    """
    library = _library("datasets")
    if isinstance(source, Path) and _is_empty(source):
        return  # the library fails on a table without rows
    options = {"split": "train", "streaming": True, "cache_dir": str(cache_folder() / "datasets")}
    try:
        rows = library.load_dataset("parquet", data_files=[str(source)], **options)
        for number, row in enumerate(rows.skip(skip), skip + 1):
            text = text_of(row, field, f"{source}: row {number}")
            if text is None or text.strip():
                yield number, text
    except DataError:
        raise
    except Exception as error:  # pyarrow's, fsspec's, the transport's
        if isinstance(source, HubFile):
            advice = "the same command goes on from the last full shard, when the hub can be reached"
            raise UnavailableError(f"{source}: reading stopped: {_told(error)}; {advice}") from error
        raise DataError(f"{source}: cannot be read as Parquet: {_told(error)}; copy it again") from error


def _is_empty(file: Path) -> bool:
    """Whether the file is an intact Parquet file without rows; the reader reports damage in more detail."""
    try:
        return _library("pyarrow.parquet").read_metadata(file).num_rows == 0
    except (OSError, ValueError):  # pyarrow's own errors are both
        return False


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _library(name: str) -> Any:
    try:
        library = importlib.import_module(name)
        if name == "datasets":
            library.disable_progress_bars()
            library.logging.set_verbosity(library.logging.CRITICAL)  # errors are also raised: report each once
        return library
    except Exception as error:  # an installed but incompatible library may raise any error
        raise UnavailableError(
            f"Parquet and the hub need the package {name}; pip install 'ratrain[datasets]' ({_told(error)})"
        ) from error
