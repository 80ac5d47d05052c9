"""The command line without servers: an embedded database, mistakes, and an installation without extras."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sqlite3
import sys
import uuid
from pathlib import Path

import pytest

from watership import SagaParked, SagaResult, StepError, bootstrap
from watership.saga.storage.sqlalchemy import SqlAlchemySagaStorage

from tests.support.command import Command, Ran, installed
from tests.support.shop import Purchase, bind

NOBODY = "00000000-0000-4000-8000-000000000000"
NO_BROKER = "amqp://guest:guest@127.0.0.1:1/"


@pytest.fixture
def command(tmp_path: Path, sqlite_url: str) -> Command:
    return Command(tmp_path, {"WATERSHIP_DATABASE_URL": sqlite_url})


@pytest.fixture
def bare(tmp_path: Path) -> Command:
    return Command(tmp_path)


def run_sagas(sqlite_url: str) -> dict[str, uuid.UUID]:
    """See `_run_sagas`."""
    return asyncio.run(_run_sagas(sqlite_url))


async def _run_sagas(sqlite_url: str) -> dict[str, uuid.UUID]:
    """One that completes, one that is undone, one that is parked."""
    ids = {}
    async with bootstrap(sagas_mapper=bind, database_url=sqlite_url) as mediator:
        for order, cents, closed in (("good", 100, False), ("dear", 20_000, False), ("stuck", 20_000, True)):
            result: SagaResult[Purchase] = await mediator.run(Purchase(order, cents, closed=closed))
            assert result.error is None or isinstance(result.error, SagaParked | StepError)
            ids[order] = result.saga_id
    return ids


def test_the_tables_are_made_and_checked(command: Command) -> None:
    assert "watership db upgrade" in command.bad("db", "check")
    for said in ("has this version's tables now", "nothing to do"):
        assert said in command.good("db", "upgrade").err
    assert "is up to date" in command.good("db", "check").err
    assert command.good("db", "check", "--json").json == []
    assert "no sagas in the embedded database" in command.good("list").err


def test_as_a_process(command: Command) -> None:
    apart = Command(command.cwd, command.env, installed())
    assert "there is no database file" in apart.bad("list")
    apart.good("db", "upgrade")
    saga_id = str(run_sagas(command.env["WATERSHIP_DATABASE_URL"])["good"])
    assert apart.good("show", saga_id, "--json").json["status"] == "COMPLETED"
    assert "No such command" in apart.bad("nonsense", code=2)


def test_a_check_of_an_empty_file_names_what_is_missing(command: Command, tmp_path: Path) -> None:
    (tmp_path / "watership.db").touch()
    ran = command.run("db", "check")
    assert ran.code == 1
    assert "watership db upgrade" in ran.out
    assert "is not as this version needs it" in ran.err
    assert "run `watership db upgrade`" in command.bad("list")
    assert len(command.run("db", "check", "--json").json) == 1


def test_looking_makes_no_file(command: Command, tmp_path: Path) -> None:
    for arguments in (["list"], ["show", NOBODY], ["db", "check"]):
        assert "there is no database file" in command.bad(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_sagas_are_listed_and_shown(command: Command, sqlite_url: str) -> None:
    command.good("db", "upgrade")
    ids = run_sagas(sqlite_url)
    rows = {row["saga_id"]: row for row in command.good("list", "--json").json}
    assert rows.keys() == {str(saga_id) for saga_id in ids.values()}
    keys = {"saga_id", "name", "status", "step", "parked_reason", "created_at", "updated_at"}
    assert all(keys <= row.keys() for row in rows.values())
    assert rows[str(ids["good"])]["status"] == "COMPLETED"
    assert "closed" in rows[str(ids["stuck"])]["parked_reason"]
    assert [row["saga_id"] for row in command.good("list", "--json", "--limit", "1").json] == [str(ids["stuck"])]
    assert [row["saga_id"] for row in command.good("list", "--json", "--parked").json] == [str(ids["stuck"])]
    undone = command.good("list", "--json", "--status", "compensated").json
    assert [row["saga_id"] for row in undone] == [str(ids["dear"])]
    assert "no sagas like that" in command.good("list", "--status", "PENDING").err

    table = command.good("list", columns=140).out
    assert all(str(saga_id) in table for saga_id in ids.values())
    assert "COMPENSATING parked" in table
    assert "the warehouse is [red]closed[/]" in table, "text of the user's is not markup"

    shown = command.good("show", str(ids["dear"])).out
    assert "failure  ChargeMoney: CardDeclined: too dear" in shown
    timeline = re.findall(r"^ *[\d.]+ s  (\w*) *(\w*) +(.+?)(?:  |$)", shown, re.MULTILINE)
    happened = [(step, action, what) for step, action, what in timeline if what in ("done", "failed")]
    assert happened == [
        ("ReserveGoods", "act", "done"),
        ("ChargeMoney", "act", "failed"),
        ("ReserveGoods", "compensate", "done"),
    ]
    assert max(len(line) for line in shown.splitlines()) <= 100
    view = command.good("show", str(ids["dear"]), "--json").json
    assert view["context"]["order"] == "dear"
    assert view["failure"]["code"] == "card_declined"
    assert view["log"][0]["changes"][0]["k"] == "created"
    assert NOBODY in command.bad("show", NOBODY)
    assert "needs the code of its own program" in command.bad("retry", str(ids["stuck"]), "--reason", "opened")


def test_what_is_not_set_is_told(bare: Command) -> None:
    assert "WATERSHIP_DATABASE_URL" in bare.bad("db", "upgrade")
    for arguments in (["list"], ["show", NOBODY]):
        assert "nowhere to look for sagas" in bare.bad(*arguments)
    for arguments in (
        ["topology", "declare"],
        ["topology", "check"],
        ["start", "PurchaseSaga", "--context", "{}"],
        ["retry", NOBODY, "--reason", "x"],
        ["compensate", NOBODY, "--reason", "x"],
    ):
        assert "WATERSHIP_BROKER_URL" in bare.bad(*arguments)


def test_settings_come_from_an_env_file_and_a_flag_goes_first(bare: Command, tmp_path: Path, sqlite_url: str) -> None:
    (tmp_path / ".env").write_text(f"WATERSHIP_DATABASE_URL={sqlite_url}\nWATERSHIP_BROKER_URL={NO_BROKER}\n")
    bare.good("db", "upgrade")
    assert "RabbitMQ at 127.0.0.1:1 cannot be reached" in bare.bad("list")
    assert bare.good("list", "--json", "--database-url", sqlite_url).json == []
    assert "there is no database file" in bare.bad("list", "--database-url", "sqlite+aiosqlite:///other.db")


@pytest.mark.parametrize(
    ("context", "stdin", "words"),
    [
        ("{", "", "--context, line 1, column 2"),
        ("[]", "", "this is an array"),
        ("@nowhere.json", "", "nowhere.json cannot be read: No such file"),
        ("@-", "", "standard input is empty"),
        ("@-", '{"a": 1}\n\n{"a": }\n', "standard input, line 3, column 7"),
        ("@-", '{"a": 1}\n[2]\n', "standard input, line 2: a context is a JSON object"),
        ("@-", '{\n  "a": 1\n  "b": 2\n}\n', "standard input, line 3, column 3"),
        ('{"a": NaN}', "", "--context, line 1, column 7"),
        ('{"a": {"b": 123456789012345678901}}', "", ".a.b is an integer over 64 bits"),
        ('{"a": "\\u0000"}', "", ".a holds a NUL"),
        ("@-", '{"a": "' + "x" * 262_144 + '"}', "the limit is 262144"),
    ],
)
def test_a_bad_context_starts_nothing(bare: Command, context: str, stdin: str, words: str) -> None:
    assert words in bare.bad("start", "PurchaseSaga", "--context", context, "--broker-url", NO_BROKER, stdin=stdin)


def test_usage_errors_exit_with_2(bare: Command) -> None:
    lines = '{"a": 1}\n{"a": 2}\n'
    assert "--id is for one saga" in bare.bad("start", "X", "--context", "@-", "--id", NOBODY, stdin=lines, code=2)
    assert "UUID" in bare.bad("show", "nonsense", code=2)
    assert "--reason" in bare.bad("retry", NOBODY, code=2)
    assert "say why" in bare.bad("retry", NOBODY, "--reason", " ", code=2)
    assert "--limit" in bare.bad("list", "--limit", "1001", code=2)
    assert "Did you mean 'start'" in bare.bad("strat", code=2)


def test_a_broker_that_is_down_is_one_sentence(bare: Command) -> None:
    for arguments in (["list"], ["topology", "check"], ["start", "X", "--context", "{}"]):
        assert "RabbitMQ at 127.0.0.1:1 cannot be reached" in bare.bad(*arguments, "--broker-url", NO_BROKER)


WITHOUT = """
import json, pathlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"aio_pika", "aiormq", "asyncpg", "jsonschema_rs", "di", "dishka"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from tests.support.command import Command

def answer(arguments):
    ran = Command(pathlib.Path.cwd()).run(*arguments)
    return [ran.code, ran.out, ran.err]

print(json.dumps([answer(arguments) for arguments in json.load(sys.stdin)]))
"""


def without_extras(cwd: Path, *commands: list[str]) -> list[Ran]:
    """What the commands come to, one after the other, where no extra is installed."""
    command = Command(cwd, apart=(sys.executable, "-c", WITHOUT))
    return [Ran(*answer) for answer in command.good(stdin=json.dumps(commands)).json]


def test_without_extras_the_embedded_commands_work_and_the_others_say_what_they_need(
    tmp_path: Path, sqlite_url: str
) -> None:
    Command(tmp_path, {"WATERSHIP_DATABASE_URL": sqlite_url}).good("db", "upgrade")
    saga_id = str(run_sagas(sqlite_url)["good"])
    database = ["--database-url", sqlite_url]
    upgraded, listed, shown, page = without_extras(
        tmp_path,
        ["db", "upgrade", *database],
        ["list", "--json", *database],
        ["show", saga_id, *database],
        ["--help"],
    )
    assert upgraded.code == listed.code == shown.code == page.code == 0
    assert len(listed.json) == 3
    assert saga_id in shown.out
    assert "watership[server]" in page.out
    services = ("orchestrator", "reaper", "worker")
    for refused in without_extras(tmp_path, *([service, "--some", "thing"] for service in services)):
        assert refused.code == 1
        assert "pip install 'watership[server]'" in refused.err
    broker, postgres = without_extras(
        tmp_path,
        ["list", "--broker-url", "amqp://guest@127.0.0.1:1/"],
        ["list", "--database-url", "postgresql://127.0.0.1:1/x"],
    )
    assert broker.err.endswith("pip install 'watership[rabbitmq]'\n")
    assert postgres.err.endswith("pip install 'watership[postgres]'\n")


def test_every_help_page_fits_and_has_its_panel(bare: Command) -> None:
    page = bare.good("--help").out
    places = [page.index(f"─ {panel} ─") for panel in ("Try it", "Services", "Sagas", "Set-up")]
    assert places == sorted(places)
    assert "─ Commands ─" not in page
    for arguments in ([], ["start"], ["list"], ["show"], ["retry"], ["compensate"], ["db"], ["topology"], ["demo"]):
        page = bare.good(*arguments, "--help").out
        assert max(len(line) for line in page.splitlines()) <= 100
    assert bare.good("--version").out.startswith("watership 0.")


def test_old_sagas_are_pruned_and_the_ledger_is_read(command: Command, sqlite_url: str) -> None:
    command.good("db", "upgrade")
    ids = run_sagas(sqlite_url)
    assert "is empty in the embedded database" in command.good("ledger").err
    asyncio.run(keep_a_late_reply(sqlite_url, ids["stuck"]))
    (line,) = command.good("ledger", str(ids["stuck"]), "--json").json
    assert line["reason"] == "act Charge attempt 1 was not awaited"
    assert "act of Charge" in command.good("ledger").out
    assert "act of Charge, attempt 1: done" in command.good("show", str(ids["stuck"])).out
    assert "the limit is 360" in command.bad("prune", "--older-than", "1s")
    assert "30d" in command.run("prune", "--older-than", "soon").err
    make_old(sqlite_url)
    assert "2 sagas would be removed" in command.good("prune", "--older-than", "30d", "--dry-run").err
    assert "2 sagas were removed" in command.good("prune", "--older-than", "30d").err
    assert [row["saga_id"] for row in command.good("list", "--json").json] == [str(ids["stuck"])]
    assert "was pruned" in command.bad("show", str(ids["good"]))


async def keep_a_late_reply(sqlite_url: str, saga_id: uuid.UUID) -> None:
    storage = SqlAlchemySagaStorage(sqlite_url)
    message = {"step": "Charge", "action": "act", "attempt": 1, "outcome": "done"}
    await storage.keep_in_ledger(saga_id, "act Charge attempt 1 was not awaited", json.dumps(message))
    await storage.close()


def make_old(sqlite_url: str) -> None:
    with contextlib.closing(sqlite3.connect(sqlite_url.partition("///")[2])) as connection, connection:
        connection.execute("UPDATE watership_saga SET created_at_ms = 1, updated_at_ms = 1")
