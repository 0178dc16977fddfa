"""The notebooks run from top to bottom on the embedded model, and show what they promise."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("quickstart.ipynb", "streaming.ipynb")
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "run_notebooks.py"))


def read(name: str) -> Any:
    import nbformat

    return nbformat.read(ROOT / "notebooks" / name, as_version=4)


def outputs(book: Any) -> list[Any]:
    return [output for cell in book.cells for output in cell.get("outputs", [])]


def kinds(book: Any) -> set[str]:
    """MIME types of everything that was shown."""
    return {kind for output in outputs(book) for kind in output.get("data", {})}


def text(book: Any) -> str:
    """All printed text."""
    return "".join(output.get("text", "") for output in outputs(book))


def bars(book: Any) -> set[str]:
    """Names of the progress bars, which are widgets."""
    states = book.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"].values()
    return {str(state["state"].get("value", "")).split(":")[0].strip() for state in states}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_shows_videos_bars_previews_and_plots(name: str) -> None:
    book = SCRIPT["executed"](ROOT / "notebooks" / name)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert {"text/html", "image/png", "image/jpeg", "image/gif"} <= kinds(book)  # gif: the live preview
    players = [output.data["text/html"] for output in outputs(book) if "text/html" in output.get("data", {})]
    assert sum("data:video/mp4" in player for player in players) >= 2
    assert {"blocks", "calls"} <= bars(book)
    plots = [cell for cell in code if "plot_" in cell.source.splitlines()[-1] or "plt.show" in cell.source]
    assert len(plots) == {"quickstart.ipynb": 2, "streaming.ipynb": 1}[name]
    for cell in plots:
        assert any("image/png" in output.get("data", {}) for output in cell.outputs), cell.source
    if name == "streaming.ipynb":
        assert "equal: True" in text(book)
        assert "the new prompt shows from frame" in text(book)


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_notebook_is_whole_and_small(name: str) -> None:
    """Outputs are kept as the script leaves them: pictures and printed text, nothing that needs a kernel."""
    source = (ROOT / "notebooks" / name).read_text(encoding="utf-8")
    assert len(source) < 250_000
    for trace in ("/home/", "/root/", "/tmp/", "/Users/"):
        assert trace not in source
    book = read(name)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert {output.output_type for output in outputs(book)} <= {"stream", "execute_result", "display_data"}
    assert kinds(book) == {"text/plain", "image/png", "image/jpeg"}
    assert SCRIPT["slim"](read(name)) == book
