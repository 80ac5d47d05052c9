"""What the guide says of the barrier: its program runs, and its tables are the ones that the library makes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.schema import CreateIndex, CreateTable

from watership.barrier import barrier_table

GUIDE = (Path(__file__).resolve().parents[2] / "docs/guide.md").read_text()
PROGRAM = re.compile(r"```python\n(# stock\.py\n.*?)```\n```\n(.*?)```", re.DOTALL)
TABLES = re.compile(r"```sql\n(CREATE TABLE watership_barrier.*?)```", re.DOTALL)


def test_the_program_says_what_is_printed_below_it(tmp_path: Path) -> None:
    found = PROGRAM.search(GUIDE)
    assert found is not None
    (tmp_path / "stock.py").write_text(found[1])
    ran = subprocess.run(
        [sys.executable, "-W", "error", "stock.py"], cwd=tmp_path, check=False, text=True, capture_output=True
    )
    assert ran.stdout == found[2], ran.stderr


@pytest.mark.parametrize(("place", "url"), [(0, "postgresql+asyncpg://"), (1, "mysql+aiomysql://")])
def test_the_tables_are_what_create_all_makes(place: int, url: str) -> None:
    dialect = create_async_engine(url).dialect
    (index,) = barrier_table.indexes
    made = [str(ddl.compile(dialect=dialect)) for ddl in (CreateTable(barrier_table), CreateIndex(index))]
    written = TABLES.findall(GUIDE)[place]
    assert words(written) == words(";".join(made))


def words(ddl: str) -> str:
    """A definition without comments and without what space makes of it."""
    plain = re.sub(r" COMMENT '(?:[^']|'')*'|--[^\n]*", "", ddl)
    return re.sub(r"\s*([(),;])\s*", r"\1", re.sub(r"\s+", " ", plain)).strip(" ;")
