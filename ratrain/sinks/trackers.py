"""Creates the trackers in a manifest's `log.trackers`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from ratrain.config.schema import LogSection
from ratrain.errors import UnavailableError
from ratrain.events import Emit
from ratrain.sinks.remote import Remote
from ratrain.sinks.tracker import Queued, TensorBoard


def require(names: Sequence[str]) -> None:
    """Raises UnavailableError if the package of one of the trackers `names` is not installed."""
    for name in names:
        if find_spec(name) is None:
            advice = "pip install 'ratrain[trackers]'"
            raise UnavailableError(f'log.trackers: "{name}" needs the package {name}; {advice}')


def trackers(log: LogSection, emit: Emit) -> list[Queued]:
    """Returns a sink for each of `log.trackers`."""
    names = dict.fromkeys(log.trackers)
    return [Queued(TensorBoard() if name == "tensorboard" else Remote(name, log), emit) for name in names]
