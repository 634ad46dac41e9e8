"""The notebook runs as it stands, and draws its traces."""

from __future__ import annotations

from pathlib import Path

import jupytext
from nbclient import NotebookClient

from cards.trace_html import SIGNS

NOTEBOOK = Path(__file__).parents[2] / "examples" / "tour.py"


def test_the_notebook_has_ten_cells_that_run_without_warnings_and_show_traces(tmp_path: Path) -> None:
    notebook = jupytext.read(NOTEBOOK)
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert len(outputs) == 10
    assert all(outputs), "every cell shows something"
    assert not [output for cell in outputs for output in cell if output.get("name") == "stderr"]
    traces = [output.data["text/html"] for cell in outputs for output in cell if output.output_type == "execute_result"]
    assert len(traces) == 5
    assert all(SIGNS["rejected"] in trace for trace in traces)
