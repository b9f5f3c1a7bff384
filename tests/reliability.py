"""The tables of docs/reliability.md: what the tests of faults saw, compared with it or written into it."""

import os
from pathlib import Path

from edadm.files import as_markdown

DOCUMENT = Path(__file__).parent.parent / "docs" / "reliability.md"
WRITE = "EDADM_WRITE_RELIABILITY"


def agrees(name: str, columns: list[str], rows: list[list[str]]) -> None:
    """Check that the table after the comment ``name`` in the document is just this; or write it there, if asked to."""
    table = as_markdown(columns, rows) + "\n"
    text = DOCUMENT.read_text()
    mark = f"<!-- made by tests/test_faults.py: {name} -->\n"
    before, found, after = text.partition(mark)
    assert found, f"{DOCUMENT} has no {mark}"
    committed, gap, rest = after.partition("\n\n")
    if os.environ.get(WRITE):
        DOCUMENT.write_text(f"{before}{mark}{table}\n{rest}")
    else:
        assert committed + "\n" == table, f"{DOCUMENT}: {WRITE}=1 python -m pytest tests/test_faults.py writes it anew"
