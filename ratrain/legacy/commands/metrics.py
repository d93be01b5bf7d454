"""`ratrain report FILE` of metrics files of the reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ratrain.atomic import write_file
from ratrain.cli.printing.tables import table
from ratrain.cli.report import make_folder
from ratrain.errors import UsageError
from ratrain.legacy.metrics.caveats import caveats
from ratrain.legacy.metrics.page import HEAD, page, rows
from ratrain.legacy.metrics.read import is_metrics, read_metrics


def report(names: Sequence[str], out: Path) -> bool:
    """Prints a table of the runs in metrics files and writes `out`/reference.html; returns False if none is one.

    Raises UsageError if only some of `names` are metrics files.
    """
    paths = [path for path in map(Path, names) if is_metrics(path)]
    if not paths:
        return False
    if len(paths) < len(names):
        raise UsageError(
            f"{paths[0]}: metrics of the reference cannot be compared with runs of ratrain; report them separately"
        )
    runs = [run for path in paths for run in read_metrics(path)]
    warnings = caveats(runs)
    print(table([HEAD, *rows(runs)]))
    print("\nnumbers come from the reference; none was measured here. Their known faults:")
    print("\n".join(f"- {line}" for line in warnings))
    make_folder(out)
    title = ", ".join(path.resolve().name for path in paths)
    write_file(out / "reference.html", [page(runs, warnings, title).encode()])
    print(f"\n{out / 'reference.html'}")
    return True
