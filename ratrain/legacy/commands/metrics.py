"""`ratrain report FILE` of metrics files of the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ratrain.atomic import write_file
from ratrain.cli.printing.document import print_document
from ratrain.cli.printing.tables import table
from ratrain.cli.report import make_folder
from ratrain.errors import UsageError
from ratrain.legacy.metrics.caveats import caveats
from ratrain.legacy.metrics.page import HEAD, page, rows
from ratrain.legacy.metrics.read import is_metrics, read_metrics


def report(names: Sequence[str], out: Path, *, as_json: bool = False) -> bool:
    """Prints the runs in metrics files, as a table or JSON, and writes `out`/reference.html; returns False if none is.

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
    make_folder(out)
    file, title = out / "reference.html", ", ".join(path.resolve().name for path in paths)
    write_file(file, [page(runs, warnings, title).encode()])
    if as_json:
        print_document({"kind": "reference", "runs": [asdict(run) for run in runs], "faults": warnings, "page": file})
        return True
    print(table([HEAD, *rows(runs)]))
    print("\nnumbers come from the reference; none was measured here. Their known faults:")
    print("\n".join(f"- {line}" for line in warnings))
    print(f"\n{file}")
    return True
