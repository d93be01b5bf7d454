"""Files of pretrained weights: finding them, and the SHA-256 of their content on record in earlier runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import tomli

from ratrain.errors import DataError, MissingError

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def weights_path(said: str) -> Path:
    """Returns the path of `init.weights`, with ~ expanded. Raises MissingError for the home of an unknown user."""
    try:
        return Path(said).expanduser()
    except RuntimeError as error:
        raise MissingError(f"{said}: {error}") from error


def weight_files(path: Path) -> list[Path]:
    """Finds the safetensors files at `path`: a folder in Hugging Face's layout, sharded or not, or one file.

    Raises MissingError for absent files, and DataError for a broken index and for pickled weights, since unpickling can
    run any code.
    """
    if path.is_file():
        _refuse_pickle(path)
        return [path]
    if not path.is_dir():
        raise MissingError(f"{path}: no such file or folder; expected a GPT-2 in Hugging Face's layout")
    if (path / _WHOLE).is_file():
        return [path / _WHOLE]
    if (path / _INDEX).is_file():
        return _shards(path / _INDEX)
    for file in sorted(path.iterdir()):
        if file.is_file() and file.suffix in _PICKLES:
            _refuse_pickle(file)
    raise MissingError(f"{path}: holds no {_WHOLE} and no {_INDEX}")


def remembered_sha256(weights: str, runs: Path) -> list[str]:
    """Returns the distinct SHA-256 values that the runs below `runs` have on record for `weights`."""
    return list(dict.fromkeys(_accounts(weights, runs)))


def _accounts(weights: str, runs: Path) -> Iterator[str]:
    for file in sorted(runs.glob("*/s*/resolved.toml")):
        try:
            init = tomli.loads(file.read_text())["init"]
            if init["weights"] == weights:
                yield init["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # no record of initial weights


def _refuse_pickle(file: Path) -> None:
    with file.open("rb") as opened:
        start = opened.read(2)
    # a zip archive or a pickle; a safetensors file begins with the length of its header, which matches neither
    if file.suffix in _PICKLES or start == b"PK" or (start[:1] == b"\x80" and start[1:] in (b"\x02", b"\x03", b"\x04")):
        raise DataError(
            f"{file}: holds pickled weights, which can run any code when they are read, and is not opened; "
            "save them as safetensors (in transformers: model.save_pretrained)"
        )


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{index}: is not an index of safetensors: {type(error).__name__}: {error}") from error
    odd = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if odd or not names:
        raise DataError(f"{index}: expected names of files beside it, got {odd[0] if odd else 'none'!r}")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise MissingError(f"{index.parent / missing[0]}: no such file, though {index.name} names it")
    return [index.parent / name for name in names]
