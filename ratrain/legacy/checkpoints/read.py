"""Reads checkpoints of the reference, of tensors and plain containers only, and determines their generation.

    A1, A2   2025-10-18 to 11-01   an extra `core` level; mechanisms that were connected to nothing
    B        2025-11-02 to 11-04   weights of mechanisms in the configuration only
    C        2025-11-05 to 11-12   with weights of their own, coupling 1
    D        2025-11-13            with a stored coupling (0 in all trained models)

and, beside these RA+MLA models, lens models, the V-series, and plain GPT-2. The optimizer numbered parameters in the
order of the state dict, the tied head left out.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ratrain.errors import DataError, MissingError

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_PREFIX = re.compile(r"^((module|_orig_mod)\.)+")
_PLAIN = (str, bytes, bool, int, float, type(None), torch.dtype, torch.device, torch.Size)
# neither trained nor used to compute: causal masks, a flag, pruning masks, the head tied to the table
_MASK = re.compile(r"\.adamprune_mask$")
_UNREAD = re.compile(r"\.attn\.(bias|_gates_dirty)$|\.adamprune_mask$|^lm_head\.weight$")
_BUFFERS = re.compile(r"\.(coupling_scale|route_bias_add)$")


@dataclass(frozen=True)
class OldCheckpoint:
    """A checkpoint of the reference; tensors have their own names without prefixes."""

    path: Path
    step: int
    weights: Mapping[str, Tensor]  # fp32, in the order of the state dict; pruned weights are zero
    config: Mapping[str, Any]  # the trainer's arguments
    optimizer: Mapping[str, Any]
    loss: float | None
    was_wrapped: bool  # by DDP; its optimizer numbered parameters in another order

    @property
    def step_name(self) -> str:
        """The ablation step, empty outside of an ablation."""
        return str(self.config.get("ra_mla_ablation_step") or "")

    @property
    def parameters(self) -> list[str]:
        """Parameter names in the optimizer's order."""
        fixed = {name for name in self.weights if _BUFFERS.search(name)}
        if not self.config.get("ra_alpha"):  # alpha was a constant then
            fixed |= {name for name in self.weights if name.endswith(".attn.ra_alpha")}
        return [name for name in self.weights if name not in fixed]


def is_checkpoint(path: Path) -> bool:
    """Whether a file begins as those of torch.save."""
    try:
        with path.open("rb") as file:
            return file.read(4).startswith((_ZIP, _PICKLE))
    except OSError:
        return False


def read_checkpoint(path: Path) -> OldCheckpoint:
    """Reads a checkpoint without executing any of it. Raises MissingError, DataError."""
    data = _load(path)
    if not isinstance(data, Mapping):
        raise DataError(f"{path}: is a {type(data).__name__}; expected the dictionary that the reference saved")
    state = next((data[key] for key in ("model_state_dict", "model") if key in data), None)
    if not isinstance(state, Mapping) or not state or not all(isinstance(t, Tensor) for t in state.values()):
        keys = ", ".join(map(str, [*data][:6])) or "none"
        raise DataError(f"{path}: has no model_state_dict of tensors (its keys: {keys})")
    config = {k: v for part in ("config", "args") for k, v in (data.get(part) or {}).items()}
    loss = data.get("val_loss", data.get("best_val_loss"))
    optimizer = next((data[k] for k in ("optimizer_state_dict", "optimizer") if isinstance(data.get(k), Mapping)), {})
    return OldCheckpoint(
        path,
        step=int(data.get("iteration", data.get("iter_num", 0))),
        weights=_weights(state, path),
        config=config,
        optimizer=optimizer,
        loss=float(loss) if isinstance(loss, int | float) else None,
        was_wrapped=any(name.startswith("module.") for name in state),
    )


def _load(path: Path) -> Any:
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise MissingError(f"{path}: no such file") from error
    except pickle.UnpicklingError as error:
        raise DataError(_refusal(path, error)) from error
    except (
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        KeyError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
    ) as error:
        raise DataError(f"{path}: is not a whole checkpoint: {_first_line(error)}") from error
    _require_plain(data, str(path), seen=set())
    return data


def _refusal(path: Path, error: Exception) -> str:
    """Returns the message for a file that asks for classes or functions, with their names if torch finds them."""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # a file of another layout, or a malicious one
        names = re.findall(r"GLOBAL ([\w.]+)", str(error))[:1]
    if not names:
        return f"{path}: is not a whole checkpoint: {_first_line(error)}"
    return (
        f"{path}: asks to run {', '.join(names)}; only tensors and plain containers are read."
        " If you trust the file, save its model_state_dict and its config (as a dict) to a new file"
    )


def _require_plain(value: Any, where: str, *, seen: set[int]) -> None:
    """Raises DataError unless `value` is tensors and plain containers all the way down."""
    if id(value) in seen or type(value) in (Tensor, torch.nn.Parameter) or isinstance(value, _PLAIN):
        return
    seen.add(id(value))
    if type(value) in (dict, OrderedDict):
        for key, child in value.items():
            _require_plain(key, where, seen=seen)
            _require_plain(child, where, seen=seen)
    elif type(value) in (list, tuple, set):
        for child in value:
            _require_plain(child, where, seen=seen)
    else:
        raise DataError(f"{where}: holds a {type(value).__module__}.{type(value).__qualname__}; only tensors and plain"
                        " containers are read")  # fmt: skip


def _weights(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    whole = {_PREFIX.sub("", name): tensor.detach() for name, tensor in state.items()}
    found = {name: tensor.float() for name, tensor in whole.items() if not _UNREAD.search(name)}
    for name in (name for name in whole if _MASK.search(name)):
        weight = _MASK.sub(".weight", name)
        if weight in found:
            found[weight] = found[weight] * whole[name].to(torch.float32)
    head, table = whole.get("lm_head.weight"), whole.get("transformer.wte.weight")
    if head is not None and table is not None and not torch.equal(head, table):
        raise DataError(f"{path}: its head differs from its token table; expected tied weights, as in the reference")
    bad = [name for name, tensor in found.items() if not tensor.isfinite().all()]
    if bad:
        raise DataError(f"{path}: {bad[0]} is not finite; expected a checkpoint with finite weights")
    return found


def generation(old: OldCheckpoint) -> str:
    """Returns plain, V, lens, C or D. Raises DataError with the reason for A1, A2, B and other files."""
    names = {re.sub(r"^transformer\.h\.\d+\.", "", name) for name in old.weights}
    reason = _unsupported(names, old)
    if reason:
        raise DataError(f"{old.path}: {reason}")
    if "attn.gates" in names:
        return "lens"
    if "attn.k_down.weight" in names:
        return "D" if "attn.coupling_scale" in names else "C"
    return "V" if {"attn.w_std", "mlp.w_std"} & names else "plain"


def _unsupported(names: set[str], old: OldCheckpoint) -> str:
    """Returns the reason if there is no model for the checkpoint, else an empty text."""
    if any(name.startswith("attn.core.") for name in names):
        which = "A2" if any(name.startswith("mlp.coupler.") for name in names) else "A1"
        return (
            f"is of generation {which} (before 2025-11-02): its mechanisms were not connected, and its band"
            " was a constant. Generations C and D, lens, V-series and plain models are read"
        )
    if "attn.k_down.weight" in names and "attn.gates" not in names and "attn.ra_alpha" not in names:
        return (
            "is of generation B (2025-11-02 to 11-04): the weights of its mechanisms were constants in"
            " its configuration, and no model has them. Generations C and D, lens, V-series and plain models are read"
        )
    if "mlp.fc_gate.weight" in names:
        return "is of the first lens version, with a gated MLP that existed for one day; there is no model for it"
    if old.config.get("use_rwr") or "attn.rwr_attn.u_h" in names:
        return "is a random-walk model: it saw later tokens in training, so it cannot generate text"
    if "mlp.w_std" in names and not {"attn.w_std", "attn.c_attn.bias"} & names:
        return "has pruned attention that saw later tokens in training (steps V14, V15, V17, V18)"
    if not {"attn.c_attn.weight", "attn.gates", "attn.k_down.weight"} & names:
        some = ", ".join([*old.weights][:3])
        return f"holds {some}; expected a GPT-2 of the reference"
    return ""


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
