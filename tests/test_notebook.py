"""The notebook of docs/ runs from beginning to end, and is stored with its pictures."""

from pathlib import Path

import pytest
from helpers import REPO

nbformat = pytest.importorskip('nbformat')
nbclient = pytest.importorskip('nbclient')
NOTEBOOK = REPO / 'docs/first_hour.ipynb'


def pictures(notebook) -> int:
    """The number of pictures in the outputs."""
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', [])]
    return sum('image/jpeg' in output.get('data', {}) for output in outputs)


def test_the_notebook_runs_and_is_stored_with_small_pictures(tmp_path: Path, monkeypatch):
    for folder in ('configs', 'tools'):
        (tmp_path / folder).symlink_to(REPO / folder)
    monkeypatch.setenv('PYTHONPATH', str(REPO))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    stored = pictures(notebook)
    assert stored >= 4
    assert NOTEBOOK.stat().st_size < 200_000
    resources = dict(metadata=dict(path=str(tmp_path)))
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    assert pictures(notebook) == stored
    log = (tmp_path / 'work_dirs/first_hour').glob('*/vis_data/scalars.json')
    losses = [line for line in next(log).read_text().splitlines() if '"loss"' in line]
    assert len(losses) == 20
