"""Creates the trackers in a manifest's `log.trackers`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from ratrain.config.schema import LogSection
from ratrain.errors import UnavailableError
from ratrain.events import Emit
from ratrain.sinks.hosted import Trackio, WandB
from ratrain.sinks.tracker import Queued, TensorBoard

_MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}


def require(names: Sequence[str]) -> None:
    """Imports the packages of the trackers `names`, before their threads start. Raises UnavailableError on failure."""
    for name in names:
        try:
            importlib.import_module(_MODULES[name])
        except Exception as error:  # an installed but incompatible package may raise any error
            advice = f"log.trackers: \"{name}\" needs the package {name}; pip install 'ratrain[trackers]'"
            raise UnavailableError(f"{advice} ({type(error).__name__}: {error})") from error


def trackers(log: LogSection, emit: Emit) -> list[Queued]:
    """Returns a sink for each of `log.trackers`."""
    made = {"tensorboard": TensorBoard, "wandb": lambda: WandB(log), "trackio": lambda: Trackio(log)}
    return [Queued(made[name](), emit) for name in dict.fromkeys(log.trackers)]
