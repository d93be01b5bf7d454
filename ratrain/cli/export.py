"""`ratrain export RUN`: the weights of a run for other programs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ratrain.cli.arguments import Command, json_argument, run_arguments
from ratrain.cli.printing.document import print_line
from ratrain.errors import UsageError

_PLACES = {"ratrain": "weights.safetensors", "hf": "hf", "nanogpt": "nanogpt.pt"}  # in the run's folder


def _arguments(parser: argparse.ArgumentParser) -> None:
    run_arguments(parser)
    parser.add_argument(
        "--to",
        choices=tuple(_PLACES),
        default="ratrain",
        help="hf: a folder for transformers; nanogpt: a checkpoint; ratrain (default): one packed file (path: -o)",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="PATH", help="file or folder (in the run's folder)")
    parser.add_argument("--dense", action="store_true", help="ratrain: pruned matrices in full")
    json_argument(parser)


def _export(args: argparse.Namespace) -> None:
    """Write a run's newest weights for transformers or nanoGPT, or to one file, pruned matrices as bit masks."""
    from ratrain.storage.folder import find_run

    run = find_run(args.run, args.out)
    path = args.output or run / _PLACES[args.to]
    if args.to == "ratrain":
        _packed(run, path, args)
        return
    if args.dense:
        raise UsageError(f"--dense: --to {args.to} stores every matrix in full")
    told = (_hf if args.to == "hf" else _nanogpt)(run, path)
    if args.json:
        print_line({"path": path, **told})
    else:
        print(_line(path, told))


def _packed(run: Path, path: Path, args: argparse.Namespace) -> None:
    from ratrain.export.packed import export

    done = export(run, path, warn=_warn, dense=args.dense)
    if args.json:
        print_line(vars(done))
        return
    what = "zero" if args.dense else "left out"
    pruned = f", {done.sparsity:.2%} of the pruned matrices {what}" if done.sparsity else ""
    print(f"{done.path}: step {done.step}, {done.packed:,} bytes of tensors in place of {done.dense:,}{pruned}")


def _hf(run: Path, path: Path) -> dict[str, object]:
    import torch

    from ratrain.export.card import model_card
    from ratrain.export.hf import architecture, write_hf
    from ratrain.run.sample import load_step

    manifest, model, step = load_step(run, device=torch.device("cpu"), warn=_warn)
    card = model_card(run, manifest, step=step, kind=architecture(model.spec) or "")
    kind = write_hf(model, tokenizer=manifest.data.tokenizer, name=str(run), folder=path, card=card)
    return {"step": step, "loads": f"transformers.{kind}.from_pretrained({str(path)!r})"}


def _nanogpt(run: Path, path: Path) -> dict[str, object]:
    import torch

    from ratrain.export.card import loss_at
    from ratrain.export.nanogpt import write_nanogpt
    from ratrain.run.sample import load_step

    manifest, model, step = load_step(run, device=torch.device("cpu"), warn=_warn)
    loss = loss_at(run, manifest, step)
    write_nanogpt(model, name=str(run), step=step, loss=float("inf") if loss is None else loss, path=path)
    return {"step": step, "loads": "nanoGPT's GPT(GPTConfig(**model_args)), then load_state_dict(model)"}


def _line(path: Path, told: dict[str, object]) -> str:
    return f"{path}: step {told['step']}; {told['loads']}"


def _warn(message: str) -> None:
    print(f"ratrain: {message}", file=sys.stderr)


COMMANDS: dict[str, Command] = {"export": Command(_arguments, _export)}
