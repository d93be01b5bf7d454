"""Tasks by name or from a local folder, with their documents, requests and digest. Nothing is scored here."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ratrain.config.find import did_you_mean
from ratrain.errors import DataError, MissingError, RatrainError, UnavailableError, UsageError

INSTALL = "pip install 'ratrain[eval]'"
_PLACES = ("data_files", "data_dir", "cache_dir", "keep_in_memory")  # of documents, which have a digest of their own
_BUILDERS = ("json", "csv", "parquet", "text", "arrow")  # of local files, as `datasets` calls them
_LOCAL = "a local folder of tasks needs no network: --tasks ./my_tasks/ (docs/commands.md)"
_OF_NETWORK = ("OfflineModeIsEnabled", "LocalEntryNotFoundError", "DatasetNotFoundError", "ConnectionError", "Timeout")
_SEED = 1234  # of the choice of few-shot examples, as in lm_eval


@dataclass(frozen=True, eq=False)
class OpenTask:
    """A task of lm_eval with its documents at hand.

    `digest` is the SHA-256 of its resolved configuration, without paths, of the documents and of every request.
    """

    name: str
    asked: str  # the word that named it
    task: Any  # lm_eval.api.task.Task
    digest: str
    documents: int
    available: int
    limit: int | None
    fewshot: int

    def rewind(self) -> None:
        """Restarts the choice of few-shot examples, so that each run gets the same."""
        self.task.set_fewshot_seed(seed=_SEED)


def require_harness() -> str:
    """Returns the version of lm_eval. Raises UnavailableError with the command that installs it."""
    try:
        found = importlib.import_module("lm_eval")
        importlib.import_module("lm_eval.tasks")
    except ImportError as error:
        name = error.name or "lm_eval"
        raise UnavailableError(
            f"downstream tasks need lm-evaluation-harness, and {name} is missing: {INSTALL}"
        ) from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of its own defaults
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # its errors are raised too
    importlib.import_module("datasets").disable_progress_bars()
    return found.__version__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides the progress bars and prints of lm_eval."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """Collects the warnings of lm_eval, each once, such as that of a target that is none of the choices."""
    found: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = " ".join(record.getMessage().split())
            if message not in found:
                found.append(message)

    logger, ear = logging.getLogger("lm_eval"), Ear(logging.WARNING)
    before = logger.level, logger.propagate
    logger.addHandler(ear)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield found
    finally:
        logger.removeHandler(ear)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def open_tasks(
    words: Sequence[str], *, limit: int | None = None, fewshot: int | None = None, beside: Path | None = None
) -> list[OpenTask]:
    """Loads tasks, groups and tags by name, and those of YAML files and of folders of them.

    `limit` is the number of first documents, `fewshot` the number of examples in front of each (a task that fixes it at
    0 keeps that). Relative paths are looked up in `beside` first; those of `data_files`, in the folder of their file.

    Raises UnavailableError without lm_eval or without a network for the data, MissingError for an unknown name or file,
    DataError for a task that cannot be loaded, UsageError for one that a language model of text cannot do safely.
    """
    require_harness()
    found: dict[str, OpenTask] = {}
    for word in words:
        for name, task in _loaded(word, beside):
            if name in found and found[name].asked != word:
                raise UsageError(f"{word}: has the task {name!r}, as has {found[name].asked}; expected each task once")
            found[name] = _opened(name, word, task, limit, fewshot)
    return list(found.values())


def _loaded(word: str, beside: Path | None) -> Iterator[tuple[str, Any]]:
    """Yields tasks of lm_eval by name."""
    if place := _place(word, beside):
        manager = _index(place if place.is_dir() else place.parent)
        for name in _names_in(place, manager, word):
            yield from _load(manager, _local(manager, name), word)
        return
    manager = _shipped()
    if word not in manager.task_index:
        hint = did_you_mean(word, manager.all_tasks) or "; `lm-eval ls tasks` lists all"
        raise MissingError(f"{word}: lm-eval knows no such task, and no file or folder is called so{hint}")
    yield from _load(manager, word, word)


def _place(word: str, beside: Path | None) -> Path | None:
    """Returns the file or folder that a word names; None for a name. Raises MissingError for a path to nothing."""
    places = [*([beside / word] if beside else []), Path(word)]
    if place := next((place for place in places if place.exists()), None):
        if place.is_dir() or place.suffix in (".yaml", ".yml"):
            return place.resolve()
        raise DataError(f"{word}: is no task; expected a YAML file of lm-eval, or a folder of them")
    if "/" in word or word.endswith((".yaml", ".yml")):
        raise MissingError(f"{word}: no such file or folder; expected a YAML file of lm-eval, or a folder of them")
    return None


@cache
def _shipped() -> Any:
    """Returns lm_eval's index of its own tasks, which takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _index(folder: Path) -> Any:
    """Returns the index of the tasks in a folder."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(folder), include_defaults=False)


def _names_in(place: Path, manager: Any, word: str) -> list[str]:
    """Returns the tasks that a file defines, or all of a folder. Raises DataError for files that cannot be read."""
    named = {Path(entry.yaml_path).resolve(): name for name, entry in manager.task_index.items() if entry.yaml_path}
    files = sorted(place.rglob("*.yaml")) if place.is_dir() else [place]
    for file in files:
        # lm_eval passes over files that it cannot read, and over those that others include
        is_task = file == place or re.search(r"^(task|group)\s*:", _text(file), re.MULTILINE)
        if is_task and file.resolve() not in named:
            raise DataError(f"{file}: {_fault_in(manager, file)}")
    names = [named[file.resolve()] for file in files if file.resolve() in named]
    if place.is_dir():
        names = [name for name in names if name in manager.all_subtasks]
    if not names:
        raise MissingError(f"{word}: holds no task; expected YAML files of lm-eval, *.yaml, each with a key `task`")
    return names


def _text(file: Path) -> str:
    return file.read_text(errors="replace")


def _fault_in(manager: Any, file: Path) -> str:
    """Returns why lm_eval cannot read a YAML file."""
    try:
        with quiet():
            manager.load([str(file)])
    except Exception as error:  # of the YAML parser, or of the code that the file names
        return f"lm-eval cannot read it: {_short(error)}"
    return "has no key `task` with the name of the task, or repeats that of another file"


def _local(manager: Any, name: str) -> Any:
    """Returns the specification of a local task: data files beside its YAML, read anew, kept in memory alone."""
    entry = manager.task_index[name]
    config = entry.cfg or {}
    if config.get("dataset_path") not in _BUILDERS or not isinstance(config.get("dataset_kwargs"), dict):
        return name
    options = dict(config["dataset_kwargs"])
    for key in ("data_files", "data_dir"):
        if key in options:
            options[key] = _beside(options[key], Path(entry.yaml_path).parent)
    options |= {"keep_in_memory": True}
    # a group, since lm_eval takes changed keys of a task from one alone
    return {"group": "ratrain", "task": [{"task": name, "dataset_kwargs": options}]}


def _beside(files: Any, folder: Path) -> Any:
    """Replaces relative paths by those below `folder`, if they exist there."""
    if isinstance(files, Mapping):
        return {key: _beside(value, folder) for key, value in files.items()}
    if isinstance(files, (list, tuple)):
        return [_beside(value, folder) for value in files]
    there = folder / str(files)
    found = there.exists() or any(folder.glob(str(files))) if not Path(str(files)).is_absolute() else False
    return str(there) if found else files


def _load(manager: Any, spec: Any, word: str) -> list[tuple[str, Any]]:
    """Loads tasks and their data. Raises RatrainErrors."""
    name = spec if isinstance(spec, str) else spec["task"][0]["task"]
    try:
        with tempfile.TemporaryDirectory(prefix="ratrain-tasks-") as cache, quiet():
            if isinstance(spec, dict):
                spec["task"][0]["dataset_kwargs"]["cache_dir"] = cache
            return list(manager.load([spec])["tasks"].items())
    except Exception as error:  # of `datasets`, of its transport, of a task's own code
        raise _refusal(name, word, error) from error


def _refusal(name: str, word: str, error: Exception) -> RatrainError:
    """Returns the error for a task that could not be loaded."""
    kind, told = type(error).__name__, _short(error)
    if kind == "DatasetGenerationError" and isinstance(error.__cause__, Exception):
        told = _short(error.__cause__)  # the error itself says no more than its name
    causes = [error, error.__cause__, error.__context__]
    if any(type(cause).__name__ in _OF_NETWORK or isinstance(cause, ConnectionError) for cause in causes):
        return UnavailableError(f"{name}: its data cannot be had: {told}; {_LOCAL}")
    if isinstance(error, FileNotFoundError):
        return MissingError(f"{name}: {told}; data_files are looked up beside the YAML file")
    return DataError(f"{name}: lm-eval cannot load this task ({word}): {kind}: {told}")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _opened(name: str, word: str, task: Any, limit: int | None, fewshot: int | None) -> OpenTask:
    """Sets the examples, builds the requests once and digests them."""
    _require_of_text(name, task)
    own = task.get_config("num_fewshot")
    if own is None or (fewshot is not None and own != 0):
        task.set_config(key="num_fewshot", value=fewshot or 0)
    try:
        with quiet():
            task.set_fewshot_seed(seed=_SEED)
            task.build_all_requests(limit=limit)
            config = dict(task.dump_config())
    except Exception as error:  # of templates and of the task's own code
        raise DataError(f"{name}: lm-eval cannot make its requests: {type(error).__name__}: {_short(error)}") from error
    for at, instance in enumerate(task.instances):
        if instance.request_type == "loglikelihood" and not instance.args[1]:
            raise DataError(f"{name}: document {instance.doc_id} has an empty continuation (request {at})")
    documents = len({instance.doc_id for instance in task.instances})
    shots = int(task.get_config("num_fewshot") or 0)
    return OpenTask(name, word, task, _digest(config, task), documents, len(task.eval_docs), limit, shots)


def _require_of_text(name: str, task: Any) -> None:
    if getattr(task, "MULTIMODAL", False):
        raise UsageError(f"{name}: needs pictures or sound; the models here read text")
    if getattr(task, "UNSAFE_CODE", False):
        raise UsageError(f"{name}: runs code that a model writes, which ratrain does not do; take lm-eval itself")


def _digest(config: dict[str, Any], task: Any) -> str:
    """Returns the SHA-256 of the configuration, the documents and the requests; paths leave it as it is."""
    config["metadata"] = {k: v for k, v in (config.get("metadata") or {}).items() if k != "config_source"}
    options = config.get("dataset_kwargs") or {}
    config["dataset_kwargs"] = {key: value for key, value in options.items() if key not in _PLACES}
    found = hashlib.sha256(_json(config))
    for instance in task.instances:
        found.update(_json([instance.doc_id, instance.request_type, instance.doc, list(instance.args)]))
    return found.hexdigest()


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=_named, ensure_ascii=False).encode(errors="surrogatepass")


def _named(value: Any) -> str:
    """Returns the name of a function, whose repr holds an address, and the repr of any other value."""
    return getattr(value, "__qualname__", None) or repr(value)
