"""ratrain: an honest trainer for GPT-2-class attention research.

`ratrain.train`, `load`, `read_run`, `verify` and the other functions for Python are described in `ratrain/api.py`.
They are imported on first use: `import ratrain` alone imports no dependency, and `import ratrain.kernels` only torch.
"""

import importlib

__version__ = "0.1.0"

# names of `ratrain.api` exported here; a missing name would be looked up as a submodule
_API = (
    "LadderRun", "Loaded", "Mechanism", "Patch", "Resolved", "RunLog", "StudyRun", "Verdict",
    "ladder", "load", "read_manifest", "read_plan", "read_run", "register", "resume", "study", "train", "try_ideas",
    "verify",
)  # fmt: skip


def __getattr__(name: str) -> object:
    if name in _API:
        return getattr(importlib.import_module("ratrain.api"), name)
    raise AttributeError(f"module 'ratrain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_API]
