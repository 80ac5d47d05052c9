"""The orchestrator's statements about sagas, their logs and the ledger. Set-wise; they decide nothing."""

from __future__ import annotations

import sqlalchemy as sa

_NOW_MS = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint".replace("::", r"\:\:")
_ROW = (
    "saga_id, name, plan_hash, status, seq, context, state, input_hash, machine_version, parked_reason, paused, "
    "owed, owed_reason, reply_to, progress, traceparent, due_at_ms, wake_at_ms, namespace, driver"
)

# The clock is read for each row as it is returned, so after its lock (law 9); where no row is found, in a row without a
# saga. Ids in order: no deadlock. By the key alone: told the namespace, the planner may go through that index instead, and
# read every saga there is.
LOCK = sa.text(
    f"WITH locked AS (SELECT {_ROW} FROM watership_saga "  # noqa: S608 - names of our own
    "WHERE saga_id = ANY(CAST(:ids AS uuid[])) ORDER BY saga_id FOR UPDATE SKIP LOCKED) "
    f"SELECT {_ROW}, {_NOW_MS} AS now_ms FROM (SELECT) AS always LEFT JOIN locked ON true"
)
EXISTING = sa.text("SELECT saga_id, namespace, driver FROM watership_saga WHERE saga_id = ANY(CAST(:ids AS uuid[]))")
CLOCK = sa.text(f"SELECT {_NOW_MS}")
# The clock is read once, by a query of its own: so the index finds what is due, and no row that is not.
DUE = sa.text(
    "SELECT saga_id FROM watership_saga WHERE namespace = :namespace AND driver = 'orchestrator' "  # noqa: S608
    f"AND wake_at_ms <= (SELECT {_NOW_MS}) AND machine_version <= CAST(:version AS int) ORDER BY wake_at_ms LIMIT :limit FOR UPDATE SKIP LOCKED"
)
# An id that another transaction is inserting would be waited for, and with it the whole batch: for as long as a process
# that is stopped in the middle of its own keeps that open. So a saga is made under an advisory lock on its id, or not now.
_FREE_TO_MAKE = "pg_try_advisory_xact_lock(hashtextextended(CAST(u.saga_id AS text), 0))"
INSERT = sa.text(
    "INSERT INTO watership_saga (saga_id, namespace, driver, name, plan_hash, status, seq, context, state, step, "  # noqa: S608 - no input
    "input_hash, machine_version, parked_reason, reply_to, progress, traceparent, owed, owed_reason, due_at_ms, wake_at_ms, "
    "created_at_ms, updated_at_ms) "
    "SELECT u.saga_id, CAST(:namespace AS text), 'orchestrator', u.name, u.plan_hash, u.status, u.seq, u.context, u.state, u.step, "
    "u.input_hash, CAST(:version AS int), u.parked_reason, u.reply_to, u.progress, u.traceparent, u.owed_reason IS NOT NULL, "
    "u.owed_reason, u.due_at_ms, CASE WHEN u.owed_reason IS NULL THEN u.due_at_ms "
    "ELSE CAST(:now_ms AS bigint) + CAST(:owed_look_ms AS bigint) END, "
    "CAST(:now_ms AS bigint), CAST(:now_ms AS bigint) "
    "FROM unnest(CAST(:saga_id AS uuid[]), CAST(:name AS text[]), CAST(:plan_hash AS text[]), CAST(:status AS text[]), "
    "CAST(:seq AS int[]), CAST(:context AS text[]), CAST(:state AS text[]), CAST(:step AS text[]), "
    "CAST(:input_hash AS text[]), CAST(:parked_reason AS text[]), CAST(:reply_to AS text[]), "
    "CAST(:progress AS bool[]), CAST(:traceparent AS text[]), CAST(:owed_reason AS text[]), CAST(:due_at_ms AS bigint[])) "
    "AS u(saga_id, name, plan_hash, status, seq, context, state, step, input_hash, parked_reason, reply_to, "
    "progress, traceparent, owed_reason, due_at_ms) "
    # A pruned saga's id is as taken as a living one's (law 11).
    "WHERE NOT EXISTS (SELECT FROM watership_tombstone t WHERE t.saga_id = u.saga_id) "
    f"AND {_FREE_TO_MAKE} "
    f"AND abs((SELECT {_NOW_MS}) - CAST(:now_ms AS bigint)) <= CAST(:off_by_ms AS bigint) "
    "ORDER BY u.saga_id ON CONFLICT (saga_id) DO NOTHING RETURNING saga_id"
)
# wake_at_ms is indexed: it is left as it is unless the saga must be looked at earlier, or somebody just looked
# (`looked`), or nothing is to be waited for any more. So an update on the hot path stays heap-only.
_MOVED = (
    "UPDATE watership_saga s SET plan_hash = u.plan_hash, status = u.status, seq = u.seq, "
    "context = COALESCE(u.context, s.context), "
    "state = u.state, step = u.step, parked_reason = u.parked_reason, machine_version = CAST(:version AS int), "
    "owed = u.owed_reason IS NOT NULL, owed_reason = u.owed_reason, "
    "due_at_ms = u.due_at_ms, updated_at_ms = CAST(:now_ms AS bigint), wake_at_ms = CASE "
    "WHEN u.owed_reason IS NOT NULL THEN u.look_at_ms "
    "WHEN u.due_at_ms IS NULL THEN NULL "
    "WHEN u.looked THEN u.due_at_ms "
    "ELSE LEAST(COALESCE(s.wake_at_ms, u.due_at_ms), u.due_at_ms) END "
    "FROM unnest(CAST(:saga_id AS uuid[]), CAST(:plan_hash AS text[]), CAST(:status AS text[]), CAST(:seq AS int[]), "
    "CAST(:context AS text[]), CAST(:state AS text[]), CAST(:step AS text[]), CAST(:parked_reason AS text[]), "
    "CAST(:owed_reason AS text[]), CAST(:due_at_ms AS bigint[]), CAST(:looked AS bool[]), CAST(:look_at_ms AS bigint[])) "
    "AS u(saga_id, plan_hash, status, seq, context, state, step, parked_reason, owed_reason, due_at_ms, looked, look_at_ms) "
)
_LOGGED = (
    "INSERT INTO watership_log (saga_id, seq, at_ms, cause, changes) "
    "SELECT l.* FROM unnest(CAST(:log_saga_id AS uuid[]), CAST(:log_seq AS int[]), CAST(:log_at_ms AS bigint[]), "
    "CAST(:log_cause AS text[]), CAST(:log_changes AS text[])) AS l(saga_id, seq, at_ms, cause, changes) "
)
# What a transition writes, by one statement: a saga that was made a moment ago and whose id a pruned one had is unmade
# (the insert may have waited, and seen nothing of what was pruned meanwhile: this one sees it, law 11); those that moved
# are updated; and what was decided is logged, but for what was unmade. The row's version is the transaction's number.
WRITE = sa.text(
    "WITH unmade AS (DELETE FROM watership_saga s USING watership_tombstone t WHERE s.saga_id = t.saga_id "  # noqa: S608
    "AND s.saga_id = ANY(CAST(:made AS uuid[])) RETURNING s.saga_id), "
    f"moved AS ({_MOVED} WHERE s.saga_id = u.saga_id), "
    f"logged AS ({_LOGGED} WHERE NOT EXISTS (SELECT FROM unmade WHERE unmade.saga_id = l.saga_id)) "
    "SELECT saga_id, CAST(CAST(pg_current_xact_id() AS text) AS bigint) AS version "
    "FROM (SELECT) AS always LEFT JOIN unmade ON true"
)
# The same for sagas that nobody has read, decided on what they were when they had this version: written only where they
# have it still, where nobody is at them, and at the time that they were decided for. `xmin` names the transaction that
# wrote a row last, whoever that was, and whatever of it: locks leave it alone. `IS TRUE` has the ids looked up in a hash:
# as a join, for which hashes are switched off (`database.SERVER_SETTINGS`), each would be compared with every other.
ADVANCE = sa.text(
    f"WITH clock AS MATERIALIZED (SELECT {_NOW_MS} AS now_ms), "  # noqa: S608
    "same AS MATERIALIZED (SELECT s.saga_id FROM watership_saga s "
    "JOIN unnest(CAST(:saga_id AS uuid[]), CAST(:row_version AS xid[]), CAST(:row_seq AS int[])) AS v(saga_id, version, seq) "
    "ON s.saga_id = v.saga_id WHERE s.xmin = v.version AND s.seq = v.seq AND abs((SELECT now_ms FROM clock) - CAST(:now_ms AS bigint)) <= CAST(:off_by_ms AS bigint) "
    "FOR UPDATE OF s SKIP LOCKED), "
    f"moved AS ({_MOVED} WHERE s.saga_id = u.saga_id AND (u.saga_id IN (SELECT saga_id FROM same)) IS TRUE "
    "RETURNING s.saga_id), "
    f"logged AS ({_LOGGED} WHERE (l.saga_id IN (SELECT saga_id FROM same)) IS TRUE) "
    "SELECT saga_id, now_ms, CAST(CAST(pg_current_xact_id_if_assigned() AS text) AS bigint) AS version "
    "FROM clock LEFT JOIN moved ON true"
)
LEDGER = sa.text(
    "INSERT INTO watership_ledger (namespace, saga_id, at_ms, reason, message) "
    "SELECT CAST(:namespace AS text), u.saga_id, CAST(:now_ms AS bigint), u.reason, u.message "
    "FROM unnest(CAST(:saga_id AS uuid[]), CAST(:reason AS text[]), CAST(:message AS text[])) "
    "AS u(saga_id, reason, message)"
)
HISTORY = sa.text(
    "SELECT saga_id, seq, at_ms, cause, changes FROM watership_log WHERE saga_id = ANY(CAST(:ids AS uuid[])) "
    "ORDER BY saga_id, seq"
)
# Only if the saga has not moved since: a reply that came in the meantime says that the command was sent.
OWE = sa.text(
    "UPDATE watership_saga s SET owed = true, owed_reason = u.reason, "
    "wake_at_ms = LEAST(COALESCE(s.wake_at_ms, u.wake_at_ms), u.wake_at_ms) "
    "FROM unnest(CAST(:saga_id AS uuid[]), CAST(:seq AS int[]), CAST(:reason AS text[]), CAST(:wake_at_ms AS bigint[])) "
    "AS u(saga_id, seq, reason, wake_at_ms) WHERE s.saga_id = u.saga_id AND s.seq = u.seq RETURNING s.saga_id"
)
SETTLE = sa.text(
    "UPDATE watership_saga s SET owed = false, owed_reason = NULL, wake_at_ms = s.due_at_ms "
    "FROM unnest(CAST(:saga_id AS uuid[]), CAST(:seq AS int[])) AS u(saga_id, seq) "
    "WHERE s.saga_id = u.saga_id AND s.seq = u.seq AND s.owed"
)
LOOKED = sa.text(
    f"UPDATE watership_saga SET wake_at_ms = CASE WHEN owed THEN {_NOW_MS} + CAST(:owed_look_ms AS bigint) "  # noqa: S608
    "ELSE due_at_ms END WHERE saga_id = ANY(CAST(:ids AS uuid[]))"
)
# Twice as long each time: what has been due for so long may wait as long again. The true deadline stays where it is.
BACK_OFF = sa.text(
    f"UPDATE watership_saga SET wake_at_ms = {_NOW_MS} + LEAST(GREATEST({_NOW_MS} - COALESCE(due_at_ms, updated_at_ms), "  # noqa: S608 - no input
    "CAST(:at_least_ms AS bigint)), CAST(:at_most_ms AS bigint)) "
    "WHERE saga_id = ANY(CAST(:ids AS uuid[])) AND wake_at_ms IS NOT NULL"
)
