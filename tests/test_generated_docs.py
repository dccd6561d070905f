"""The pages that are made from the code are current."""

import runpy

import pytest
from helpers import REPO

GENERATOR = runpy.run_path(str(REPO / 'tools/generate_docs.py'))


@pytest.mark.parametrize('name', GENERATOR['PAGES'])
def test_page_is_current(name):
    page = GENERATOR['PAGES'][name]()
    assert (REPO / 'docs' / name).read_text(encoding='utf-8') == page, (
        'run python tools/generate_docs.py'
    )
