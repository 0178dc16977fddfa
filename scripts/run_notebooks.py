"""Run the notebooks in place, and keep the outputs that are small and show without a kernel.

    python scripts/run_notebooks.py [NOTEBOOK ...]

Pictures and printed text stay in the files; players, animations and progress bars are left out.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
KEPT = ("text/plain", "image/png", "image/jpeg")


def executed(path: Path) -> Any:
    """The notebook with everything that it showed. Runs in an empty folder. Raises CellExecutionError."""
    book = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(book, timeout=900, kernel_name="python3", resources=resources).execute()
    return book


def slim(book: Any) -> Any:
    """Drop, in place, what is large, needs a running kernel or tells of the machine."""
    for cell in book.cells:
        if cell.cell_type != "code":
            continue
        outputs = [slimmed for output in cell.outputs if (slimmed := _slim_output(output)) is not None]
        cell.outputs = []
        for output in outputs:  # text comes in as many pieces as the kernel flushed
            last = cell.outputs[-1] if cell.outputs else None
            if last is not None and output.output_type == last.output_type == "stream":
                last.text += output.text
            else:
                cell.outputs.append(output)
        cell.metadata = {}
    book.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return book


def _slim_output(output: Any) -> Any:
    if output.output_type == "stream":
        return output if output.name == "stdout" else None
    shown = set(output.get("data", {}))
    if shown - set(KEPT) - {"text/html"}:  # an animation or a widget: without it only a bare repr would stay
        return None
    data = {kind: value for kind, value in output.data.items() if kind in KEPT}
    if any(kind.startswith("image/") for kind in data):
        data.pop("text/plain", None)
    if "image/jpeg" in data:
        data.pop("image/png", None)
    output.data, output.metadata = data, {}
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path)
    for path in parser.parse_args().notebooks or sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(slim(executed(path)), path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
