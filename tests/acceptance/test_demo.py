"""`watership demo` as a newcomer runs it: it kills a process for real, and every saga still ends and the books balance."""

from __future__ import annotations

import os
import re
import shlex
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from watership.demo.shop import PIECES_AT_FIRST, OutOfStock, Shop

from tests.support.processes import Processes

ORDERS = 60
COMMAND = str(Path(sys.executable).with_name("watership"))


def watership(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command, env = [COMMAND, *arguments], {**os.environ, "COLUMNS": "200"}
    return subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True, timeout=60, check=False)


def number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, f"nothing like {pattern!r} in:\n{text}"
    return int(found[1])


def rows(path: Path, sql: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(path) as connection:
        found = connection.execute(sql).fetchall()
    connection.close()
    return found


def test_the_demo_kills_a_process_and_every_saga_ends(tmp_path: Path, processes: Processes) -> None:
    (tmp_path / "here").mkdir()
    running = processes.watership("demo", "--orders", str(ORDERS), cwd=tmp_path / "here")
    assert running.wait(timeout_s=60) == 0, running.output
    text = running.output

    killed = number(r"between charge and ship: kill -9 (\d+)", text)
    assert number(r"A second process, (\d+)", text) != killed
    in_flight = number(r"(\d+) sagas in flight", text)
    assert number(r"in flight, (\d+) of them between charge", text) >= 1
    assert number(r"(\d+) +recovered", text) == in_flight
    completed, compensated = number(r"(\d+) +completed", text), number(r"(\d+) +compensated", text)
    assert completed + compensated == ORDERS
    assert number(r"(\d+) +of them fell back", text) >= 1
    assert text.count("✓") == 3
    assert text.count("kill -9") == 2, "the timeline shows the kill too"

    # What is printed is what is in the databases.
    sagas = rows(tmp_path / "here/.demo/orders.db", "SELECT status, count(*) FROM watership_saga GROUP BY status")
    assert sorted(sagas) == [("COMPENSATED", compensated), ("COMPLETED", completed)]
    interrupted = "SELECT count(DISTINCT saga_id) FROM watership_log WHERE cause = 'interrupted'"
    assert rows(tmp_path / "here/.demo/orders.db", interrupted) == [(in_flight,)]
    assert rows(tmp_path / "here/.demo/shop.db", "SELECT count(*), count(DISTINCT number) FROM parcel") == [
        (completed, completed)
    ]
    never = "SELECT number FROM charge GROUP BY number HAVING count(*) > 1"
    assert rows(tmp_path / "here/.demo/shop.db", never) == []

    # The commands at its end work as they are printed.
    commands = re.findall(r"^  (\S*watership (?:show|list) .*)$", text, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        done = watership(tmp_path / "here", *shlex.split(command)[1:])
        assert done.returncode == 0, done.stderr
        assert "OrderSaga" in done.stdout


@pytest.mark.parametrize("what", ["a file", "a stranger's database"])
def test_a_directory_that_it_must_not_use_is_one_sentence(tmp_path: Path, what: str) -> None:
    target = tmp_path / "target"
    if what == "a file":
        target.write_text("")
    else:
        target.mkdir()
        (target / "orders.db").write_text("precious")
    done = watership(tmp_path, "demo", "--directory", str(target))
    assert done.returncode == 1
    assert "choose another directory with --directory" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    if what != "a file":
        assert (target / "orders.db").read_text() == "precious"


def test_it_draws_what_it_shows(tmp_path: Path) -> None:
    done = watership(tmp_path, "demo", "--orders", "20", "--record", "demo.svg")
    assert done.returncode == 0, done.stderr
    picture = (tmp_path / "demo.svg").read_text(encoding="utf-8")
    assert "watership&#160;demo" in picture or "watership demo" in picture
    assert str(tmp_path) not in picture


async def test_the_books_show_a_card_that_was_charged_twice(tmp_path: Path) -> None:
    async with Shop.open(tmp_path / "shop.db") as shop:
        for _ in range(2):  # a repeated request changes nothing
            await shop.charge("a", "W-1", "visa 4242", "EUR", 500)
            await shop.ship("b", "W-1", "Parcello", 100)
        assert await shop.books() == {"EUR": (500, 0, 500)}
        assert await shop.asked_again() == ["a", "b"]
        await shop.charge("another key", "W-1", "visa 4242", "EUR", 500)
        assert await shop.books() == {"EUR": (1000, 0, 500)}


async def test_the_shop_undoes_what_was_done_and_only_that(tmp_path: Path) -> None:
    async with Shop.open(tmp_path / "shop.db") as shop:
        await shop.fill({"RAKE", "FIG-BROWN"})
        await shop.reserve("a", "W-1", {"RAKE": 3})
        with pytest.raises(OutOfStock):
            await shop.reserve("b", "W-2", {"RAKE": 3, "FIG-BROWN": 1})
        await shop.charge("c", "W-1", "visa 4242", "EUR", 500)
        for number in ("W-1", "W-2"):
            for _ in range(2):
                await shop.refund(f"refund {number}", number)
                await shop.release(f"release {number}", number)
        assert await shop.books() == {"EUR": (500, 500, 0)}
    assert rows(tmp_path / "shop.db", "SELECT pieces FROM stock WHERE sku = 'RAKE'") == [(PIECES_AT_FIRST,)]
