"""Runs docs/notebook.ipynb: its code cells, in order, in one namespace and in the current folder.

python tests/notebook.py --write     stores the outputs in the notebook
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "notebook.ipynb"


def run(notebook: dict[str, Any]) -> dict[str, Any]:
    """Fills the outputs of every code cell; returns the namespace that the cells leave. Raises what a cell raises."""
    import matplotlib

    matplotlib.use("agg")
    space: dict[str, Any] = {}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, start=1):
        cell["execution_count"], cell["outputs"] = number, list(_outputs("".join(cell["source"]), space, number))
    return space


def _outputs(source: str, space: dict[str, Any], number: int):
    """Executes a cell; yields its printed text, the value of its last expression, and its figure."""
    import matplotlib.pyplot as plt

    *body, last = ast.parse(source).body
    body, last = ([*body], last.value) if isinstance(last, ast.Expr) else ([*body, last], None)
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body, []), "cell", "exec"), space)
        if last is not None:
            value = eval(compile(ast.Expression(last), "cell", "eval"), space)
    if text := printed.getvalue():
        yield {"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)}
    if value is not None:
        data = {"text/plain": [repr(value)]}
        yield {"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": data}
    if plt.get_fignums():
        picture = io.BytesIO()
        plt.savefig(picture, dpi=60)
        plt.close("all")
        png = base64.b64encode(picture.getvalue()).decode()
        yield {"output_type": "display_data", "metadata": {}, "data": {"image/png": png}}


def main() -> None:
    notebook = json.loads(NOTEBOOK.read_text())
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run(notebook)
    if "--write" in sys.argv:
        NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
