"""The command line on real servers: an orchestrator and a worker run, and the sagas are started and moved from outside."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import Command, installed
from tests.support.processes import Processes

READY = r"ready"
POLL_S = 0.1


@pytest.fixture
def command(tmp_path: Path, broker_url: str, namespace: str) -> Command:
    return Command(tmp_path, {"WATERSHIP_BROKER_URL": broker_url, "WATERSHIP_NAMESPACE": namespace})


@pytest.fixture
def services(processes: Processes, command: Command, database_url: str, step_queues: set[str]) -> Callable[[], None]:
    """Starts an orchestrator, a reaper and a worker."""

    def start() -> None:
        step_queues.update(("ReserveGoods", "ChargeMoney"))
        Command(command.cwd, {"WATERSHIP_DATABASE_URL": database_url}).good("db", "upgrade")
        env = {**command.env, "WATERSHIP_DATABASE_URL": database_url}
        started = [
            processes.watership("orchestrator", env=env),
            processes.watership("reaper", env=env),
            processes.watership("worker", "tests.support.shop:worker", env=env),
        ]
        for process in started:
            process.wait_for_line(READY)

    return start


def context(order: str, cents: int = 100, **more: Any) -> str:
    return json.dumps({"order": order, "cents": cents, **more})


def shown_when(command: Command, saga_id: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The saga, once it is as wanted."""
    deadline = time.monotonic() + 30
    while True:
        ran = command.run("show", saga_id, "--json")
        if ran.code == 0 and wanted(ran.json):
            view: dict[str, Any] = ran.json
            return view
        assert time.monotonic() < deadline, ran
        time.sleep(POLL_S)


def test_the_topology_is_checked_and_declared(command: Command, step_queues: set[str]) -> None:
    step_queues.add("Pack")
    missing = command.run("topology", "check", "--queue", "Pack")
    assert missing.code == 1
    assert missing.out.count("is not there") == 9
    assert "watership topology declare" in missing.err
    for _ in range(2):
        command.good("topology", "declare", "--queue", "Pack")
    assert "has all its exchanges and queues" in command.good("topology", "check", "--queue", "Pack").err
    assert len(command.run("topology", "check", "--queue", "Other", "--json").json) == 1


def test_nobody_answers_and_a_wrong_password(command: Command, broker_url: str) -> None:
    assert "no orchestrator answers on namespace" in command.bad("list")
    wrong = broker_url.replace(":guest@", ":wr0ng@")
    sentence = command.bad("list", "--broker-url", wrong)
    assert "refuses user" in sentence
    assert "wr0ng" not in sentence


def test_a_saga_is_started_watched_listed_and_shown(command: Command, services: Callable[[], None]) -> None:
    services()
    saga_id = str(uuid.uuid4())
    apart = Command(command.cwd, command.env, installed())
    ran = apart.good("start", "PurchaseSaga", "--context", context("a"), "--id", saga_id, "--watch")
    words = [line.split() for line in ran.out.splitlines()]
    assert words[0] == ["PurchaseSaga", saga_id]
    assert [word[2] for word in words[1:]] == ["ReserveGoods", "ChargeMoney", "COMPLETED"]
    assert '{"shelf": "B7"}' in ran.out
    again = command.good("start", "PurchaseSaga", "--context", context("a"), "--id", saga_id, "--watch")
    assert "COMPLETED" in again.out, "the same start again is the same saga"
    other = command.bad("start", "PurchaseSaga", "--context", context("b"), "--id", saga_id, "--watch")
    assert "is taken" in other

    failed = command.run("start", "PurchaseSaga", "--context", context("c", 20_000), "--watch")
    assert failed.code == 1
    assert "COMPENSATED: ChargeMoney: CardDeclined: too dear" in failed.out
    rows = command.good("list", "--json").json
    assert [row["status"] for row in rows] == ["COMPENSATED", "COMPLETED"]
    assert command.good("list", "--json", "--status", "COMPLETED").json[0]["saga_id"] == saga_id
    assert "ChargeMoney" in command.good("show", saga_id).out
    assert "no saga has the id" in command.bad("show", str(uuid.uuid4()))
    refused = command.bad("start", "PurchaseSaga", "--context", '{"order": 7}', "--watch")
    assert "does not fit its schema" in refused
    assert "waits for no signal 'approval'; its signals: none" in command.bad("signal", saga_id, "approval")


def test_a_file_of_contexts_starts_many(command: Command, services: Callable[[], None], tmp_path: Path) -> None:
    services()
    lines = [context(f"order {number}", 20_000 if number % 10 == 0 else 100) for number in range(40)]
    (tmp_path / "orders.jsonl").write_text("\n".join(lines) + "\n")
    ran = command.run("start", "PurchaseSaga", "--context", "@orders.jsonl", "--watch")
    assert ran.code == 1
    assert len(set(ran.out.split())) == 40
    assert "started 40 of 40 sagas" in ran.err
    assert ran.err.count("COMPENSATED: CardDeclined: too dear") == 4
    ids = command.good("start", "PurchaseSaga", "--context", "@-", stdin=context("x") + "\n" + context("y")).out.split()
    assert len(ids) == 2
    for saga_id in ids:
        shown_when(command, saga_id, lambda view: view["status"] == "COMPLETED")


def test_a_parked_saga_is_retried_and_another_compensated(command: Command, services: Callable[[], None]) -> None:
    services()
    saga_id = command.good("start", "PurchaseSaga", "--context", context("s", 20_000, closed=True)).out.strip()
    seen = shown_when(command, saga_id, lambda view: view["parked_reason"] is not None)
    assert "the warehouse is [red]closed[/]" in seen["parked_reason"]
    assert "parked" in command.good("list", "--parked").out
    retried = command.good("retry", saga_id, "--reason", "it opens at nine")
    assert f"PurchaseSaga {saga_id} is COMPENSATING now" in retried.out
    shown_when(command, saga_id, lambda view: view["seq"] > seen["seq"] and view["parked_reason"] is not None)
    assert "it opens at nine" in command.good("show", saga_id).out
    done = command.good("start", "PurchaseSaga", "--context", context("d"), "--watch").out.split()[1]
    assert "is COMPLETED" in command.run("compensate", done, "--reason", "too late").err
    assert "no saga has the id" in command.bad("retry", str(uuid.uuid4()), "--reason", "x")


def test_dead_letters_are_listed_shown_requeued_and_discarded(command: Command, services: Callable[[], None]) -> None:
    services()
    assert "no dead letters that wait" in command.good("dead", "list").err
    command.good("start", "PurchaseSaga", "--context", context("a"), "--watch")  # so that the saga is known
    refused = command.bad("start", "PurchaseSaga", "--context", '{"order": 7}', "--watch")
    assert "does not fit its schema" in refused
    (row,) = command.good("dead", "list", "--json").json
    assert (row["reason"], row["kind"], row["waits_for"]) == ("rejected", "start-saga", "person")
    letter = str(row["id"])
    assert "waits for a person" in command.good("dead", "list").out
    assert '"order": 7' in command.good("dead", "show", letter).out
    assert "say why" in command.run("dead", "discard", letter, "--reason", " ").err
    again = command.good("dead", "requeue", letter, "--reason", "is it mended?")
    assert f"dead letter {letter}: refused: the context of saga PurchaseSaga" in again.out
    assert f"dead letter {letter}: discarded" in command.good("dead", "discard", letter, "--reason", "a mistake").out
    assert "a mistake" in command.good("dead", "show", letter).out
    assert len(command.good("dead", "list", "--all", "--json").json) == 1
    assert "no dead letter 9 waits" in command.bad("dead", "requeue", "9", "--reason", "x")
    assert command.good("ledger", "--json").json == []
