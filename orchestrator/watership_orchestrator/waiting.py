"""The statements about rows that wait to be judged: starts, early signals, dead letters. Set-wise, on Postgres.

They are found without a lock that lasts, held in the transaction that judges them, and go with it: so each is judged
once, whoever looked at it in between. It decides nothing.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from watership.saga.storage.protocol import Tombstone
from watership_orchestrator.arrivals import Shelf, Waiting
from watership_orchestrator.direct import Asked
from watership_orchestrator.records import DeadLetter, WaitingSignal, WaitingStart

_NOW_MS = r"(SELECT (extract(epoch FROM clock_timestamp()) * 1000)\:\:bigint)"
BACK_OFF_MIN_MS, BACK_OFF_MAX_MS = 10_000, 3_600_000

_STARTS = sa.text(
    "SELECT start_id, saga_id, saga, plan_hash, plan, context, traceparent FROM watership_start "  # noqa: S608 - no input
    f"WHERE namespace = :namespace AND driver = 'orchestrator' AND look_at_ms <= {_NOW_MS} "
    "ORDER BY look_at_ms, start_id LIMIT :limit FOR UPDATE SKIP LOCKED"
)
_SIGNALS = sa.text(
    "SELECT g.saga_id, g.signal_id, g.name, g.data, g.at_ms FROM watership_signal g "  # noqa: S608 - no input
    f"WHERE g.namespace = :namespace AND g.driver = 'orchestrator' AND g.look_at_ms <= {_NOW_MS} "
    "AND EXISTS (SELECT FROM watership_saga s WHERE s.saga_id = g.saga_id AND s.namespace = g.namespace "
    "AND s.driver = g.driver AND s.status <> 'PENDING') ORDER BY g.at_ms LIMIT :limit FOR UPDATE SKIP LOCKED"
)
_SIGNALS_OF = sa.text(
    "SELECT saga_id, signal_id, name, data, at_ms FROM watership_signal WHERE namespace = :namespace "
    "AND driver = 'orchestrator' AND saga_id = ANY(CAST(:ids AS uuid[])) ORDER BY at_ms, signal_id"
)
_LETTER = "id, queue, reason, kind, message_id, saga_id, reply_to, headers, body, actor, actor_reason"
_LETTERS = sa.text(
    f"SELECT {_LETTER} FROM watership_dead_letter "  # noqa: S608 - names of our own
    f"WHERE namespace = :namespace AND judge_at_ms <= {_NOW_MS} "
    "ORDER BY judge_at_ms, id LIMIT :limit FOR UPDATE SKIP LOCKED"
)
_ONE_LETTER = sa.text(
    f"SELECT {_LETTER} FROM watership_dead_letter WHERE namespace = :namespace AND id = :id "  # noqa: S608 - as above
    "AND judge_at_ms IS NOT NULL"
)
_HOLD = {
    Shelf.START: sa.text(
        "SELECT start_id AS key FROM watership_start WHERE start_id = ANY(CAST(:keys AS bigint[])) "
        "ORDER BY start_id FOR UPDATE SKIP LOCKED"
    ),
    Shelf.DEAD: sa.text(
        "SELECT id AS key FROM watership_dead_letter WHERE id = ANY(CAST(:keys AS bigint[])) "
        "AND judge_at_ms IS NOT NULL ORDER BY id FOR UPDATE SKIP LOCKED"
    ),
}
_U_SIGNALS = "unnest(CAST(:saga_id AS uuid[]), CAST(:signal_id AS text[])) AS u(saga_id, signal_id)"
_THE_SIGNALS = "g.namespace = :namespace AND g.saga_id = u.saga_id AND g.signal_id = u.signal_id"
_HOLD_SIGNALS = sa.text(
    f"SELECT g.saga_id, g.signal_id FROM watership_signal g JOIN {_U_SIGNALS} ON {_THE_SIGNALS} "  # noqa: S608 - ours
    "ORDER BY g.saga_id, g.signal_id FOR UPDATE OF g SKIP LOCKED"
)
_DONE_STARTS = sa.text("DELETE FROM watership_start WHERE start_id = ANY(CAST(:keys AS bigint[]))")
_DONE_SIGNALS = sa.text(f"DELETE FROM watership_signal g USING {_U_SIGNALS} WHERE {_THE_SIGNALS}")  # noqa: S608 - ours
_DONE_LETTERS = sa.text(
    f"UPDATE watership_dead_letter d SET judged = u.judged, judged_at_ms = {_NOW_MS}, judge_at_ms = NULL "  # noqa: S608
    "FROM unnest(CAST(:keys AS bigint[]), CAST(:judged AS text[])) AS u(id, judged) WHERE d.id = u.id"
)
# Twice as long each time: what has waited for so long may wait as long again.
_LATER = f"{_NOW_MS} + LEAST(GREATEST({_NOW_MS} - at_ms, {BACK_OFF_MIN_MS}), CAST(:at_most_ms AS bigint))"
_BACK_OFF = {
    Shelf.START: sa.text(
        f"UPDATE watership_start SET look_at_ms = {_LATER} WHERE start_id = ANY(CAST(:keys AS bigint[]))"  # noqa: S608
    ),
    Shelf.DEAD: sa.text(
        f"UPDATE watership_dead_letter SET judge_at_ms = {_LATER} "  # noqa: S608 - no input
        "WHERE id = ANY(CAST(:keys AS bigint[])) AND judge_at_ms IS NOT NULL"
    ),
}
_BACK_OFF_SIGNALS = sa.text(
    f"UPDATE watership_signal g SET look_at_ms = {_LATER} FROM {_U_SIGNALS} WHERE {_THE_SIGNALS}"  # noqa: S608 - ours
)
_KEEP_SIGNALS = sa.text(
    "INSERT INTO watership_signal (namespace, driver, saga_id, signal_id, name, data, at_ms) "  # noqa: S608 - no input
    f"SELECT CAST(:namespace AS text), 'orchestrator', u.saga_id, u.signal_id, u.name, u.data, {_NOW_MS} "
    "FROM unnest(CAST(:saga_id AS uuid[]), CAST(:signal_id AS text[]), CAST(:name AS text[]), CAST(:data AS text[])) "
    "AS u(saga_id, signal_id, name, data) ON CONFLICT DO NOTHING"
)
_KEEP_LETTERS = sa.text(
    "INSERT INTO watership_dead_letter (namespace, queue, reason, kind, message_id, saga_id, reply_to, headers, body, "  # noqa: S608
    "at_ms, judge_at_ms, judged, judged_at_ms) SELECT CAST(:namespace AS text), u.queue, u.reason, u.kind, "
    f"u.message_id, u.saga_id, u.reply_to, u.headers, u.body, {_NOW_MS}, CASE WHEN u.judge THEN {_NOW_MS} END, "
    f"u.judged, CASE WHEN u.judged IS NOT NULL THEN {_NOW_MS} END "
    "FROM unnest(CAST(:queue AS text[]), CAST(:reason AS text[]), CAST(:kind AS text[]), CAST(:message_id AS text[]), "
    "CAST(:saga_id AS uuid[]), CAST(:reply_to AS text[]), CAST(:headers AS text[]), CAST(:body AS bytea[]), "
    "CAST(:judge AS bool[]), CAST(:judged AS text[])) "
    "AS u(queue, reason, kind, message_id, saga_id, reply_to, headers, body, judge, judged)"
)
_HAND = sa.text(
    f"UPDATE watership_dead_letter SET actor = :actor, actor_reason = :reason, "  # noqa: S608 - no input
    f"judge_at_ms = CASE WHEN :judge THEN {_NOW_MS} END, judged = CAST(:judged AS text), "
    f"judged_at_ms = CASE WHEN :judge THEN NULL ELSE {_NOW_MS} END "
    "WHERE namespace = :namespace AND id = :id AND judge_at_ms IS NULL RETURNING id"
)
_TOMBSTONES = sa.text(
    "SELECT saga_id, name, input_hash, status, namespace = :namespace AND driver = 'orchestrator' AS ours "
    "FROM watership_tombstone WHERE saga_id = ANY(CAST(:ids AS uuid[]))"
)


async def starts(connection: Asked, namespace: str, limit: int) -> list[WaitingStart]:
    """What clients wrote, oldest first."""
    rows = await connection.execute(_STARTS, {"namespace": namespace, "limit": limit})
    return [WaitingStart(**{**row, "saga_id": _plain(row["saga_id"])}) for row in rows.mappings()]


async def signals(connection: Asked, namespace: str, limit: int) -> list[WaitingSignal]:
    """Signals whose saga runs by now, oldest first."""
    rows = await connection.execute(_SIGNALS, {"namespace": namespace, "limit": limit})
    return [_signal(row) for row in rows.mappings()]


async def signals_of(connection: Asked, namespace: str, ids: Collection[uuid.UUID]) -> list[WaitingSignal]:
    """The signals that are kept for these sagas, oldest first."""
    rows = await connection.execute(_SIGNALS_OF, {"namespace": namespace, "ids": sorted(ids)})
    return [_signal(row) for row in rows.mappings()]


async def dead_letters(connection: Asked, namespace: str, limit: int) -> list[DeadLetter]:
    """Dead letters that shall be judged, oldest first."""
    rows = await connection.execute(_LETTERS, {"namespace": namespace, "limit": limit})
    return [_letter(dict(row)) for row in rows.mappings()]


async def dead_letter(connection: Asked, namespace: str, letter_id: int) -> DeadLetter | None:
    """One that shall be judged."""
    rows = await connection.execute(_ONE_LETTER, {"namespace": namespace, "id": letter_id})
    row = rows.mappings().one_or_none()
    return _letter(dict(row)) if row is not None else None


async def hold(connection: Asked, namespace: str, rows: Collection[Waiting]) -> set[Waiting]:
    """Locks those that still wait, and that nobody else is judging."""
    held: set[Waiting] = set()
    for shelf, statement in _HOLD.items():
        keys = sorted(row.key for row in rows if row.shelf is shelf and isinstance(row.key, int))
        if keys:
            held.update(Waiting(shelf, key) for key in (await connection.execute(statement, {"keys": keys})).scalars())
    columns = _signal_columns(rows)
    if columns["saga_id"]:
        found = await connection.execute(_HOLD_SIGNALS, {**columns, "namespace": namespace})
        held.update(Waiting(Shelf.SIGNAL, (_plain(row.saga_id), row.signal_id)) for row in found)
    return held


async def done(connection: Asked, namespace: str, told: Mapping[Waiting, str]) -> None:
    """They are judged: starts and signals go; dead letters stay, with what came of them."""
    starts = [row.key for row in told if row.shelf is Shelf.START]
    if starts:
        await connection.execute(_DONE_STARTS, {"keys": starts})
    letters = {row.key: words for row, words in told.items() if row.shelf is Shelf.DEAD}
    if letters:
        await connection.execute(_DONE_LETTERS, {"keys": list(letters), "judged": list(letters.values())})
    columns = _signal_columns(told)
    if columns["saga_id"]:
        await connection.execute(_DONE_SIGNALS, {**columns, "namespace": namespace})


async def back_off(
    connection: Asked, namespace: str, rows: Collection[Waiting], *, at_most_ms: int = BACK_OFF_MAX_MS
) -> None:
    """Looks at these again only later: each failure twice as much later, at most an hour."""
    for shelf, statement in _BACK_OFF.items():
        keys = [row.key for row in rows if row.shelf is shelf]
        if keys:
            await connection.execute(statement, {"keys": keys, "at_most_ms": at_most_ms})
    columns = _signal_columns(rows)
    if columns["saga_id"]:
        await connection.execute(_BACK_OFF_SIGNALS, {**columns, "namespace": namespace, "at_most_ms": at_most_ms})


async def keep_signals(connection: Asked, namespace: str, kept: Sequence[WaitingSignal]) -> None:
    """Keeps signals whose saga does not exist yet; one that is kept already is left as it is."""
    names = ("saga_id", "signal_id", "name", "data")
    columns = {name: [getattr(signal, name) for signal in kept] for name in names}
    await connection.execute(_KEEP_SIGNALS, {**columns, "namespace": namespace})


async def keep_dead_letters(connection: Asked, namespace: str, letters: Sequence[DeadLetter]) -> None:
    """Keeps what died."""
    names = [
        field.name for field in dataclasses.fields(DeadLetter) if field.name not in ("id", "actor", "actor_reason")
    ]
    columns = {name: [getattr(letter, name) for letter in letters] for name in names}
    await connection.execute(_KEEP_LETTERS, {**columns, "namespace": namespace})


async def hand_on_dead_letter(
    connection: Asked, namespace: str, letter_id: int, *, actor: str, reason: str, judged: str | None
) -> bool:
    """An operator's hand: judged again (``judged`` None), or put aside with these words. False: none waits for one."""
    values = {"namespace": namespace, "id": letter_id, "actor": actor, "reason": reason}
    found = await connection.execute(_HAND, {**values, "judged": judged, "judge": judged is None})
    return found.first() is not None


async def tombstones(connection: Asked, namespace: str, ids: Collection[uuid.UUID]) -> list[Tombstone]:
    """What pruned sagas among ``ids`` left."""
    rows = await connection.execute(_TOMBSTONES, {"ids": sorted(ids), "namespace": namespace})
    return [Tombstone(_plain(row.saga_id), row.name, row.input_hash, row.status, row.ours) for row in rows]


def _signal(row: sa.RowMapping) -> WaitingSignal:
    return WaitingSignal(**{**row, "saga_id": _plain(row["saga_id"])})


def _letter(row: Mapping[str, Any]) -> DeadLetter:
    saga_id = row["saga_id"]
    return DeadLetter(**{**row, "saga_id": _plain(saga_id) if saga_id is not None else None}, judge=True)


def _signal_columns(rows: Collection[Waiting]) -> dict[str, list[Any]]:
    keys = sorted(row.key for row in rows if isinstance(row.key, tuple))
    return {"saga_id": [saga_id for saga_id, _ in keys], "signal_id": [signal_id for _, signal_id in keys]}


def _plain(saga_id: uuid.UUID) -> uuid.UUID:
    return uuid.UUID(bytes=saga_id.bytes)  # asyncpg's own class is not JSON
