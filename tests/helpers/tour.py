"""Run docs/tour.ipynb and write it again with its outputs, without times: ``python tests/helpers/tour.py``."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

FILE = Path(__file__).parents[2] / "docs" / "tour.ipynb"
CELL_SECONDS = 900


def main() -> None:
    notebook = nbformat.read(FILE, as_version=4)
    NotebookClient(notebook, timeout=CELL_SECONDS, record_timing=False, coalesce_streams=True).execute()
    notebook.metadata["language_info"] = {"name": "python"}  # its version is this machine's
    nbformat.write(notebook, FILE)


if __name__ == "__main__":
    main()
