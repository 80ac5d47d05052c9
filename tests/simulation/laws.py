"""The laws of the design, checked at every commit, publish and acknowledgement of a simulated world.

Each check is named by its law. The first that is broken is kept in `broken`; the run ends there. What can be told from the
log alone is in `log_laws`; what the participants know is in `books`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence

from watership import codec
from watership.bus.protocol import Delivery, Fate, Message
from watership.machine import changes as c
from watership.machine.apply import apply
from watership.machine.effects import SendCommand, effects_of
from watership.machine.plan import Plan
from watership.machine.state import Action, SagaState
from watership.messages import AdminAnswer, AdminRequest, Signal, StartSaga, StepReply, read
from watership.saga.storage.rows import changes_from_json, state_from_row
from watership.testing.memory_database import LogRow, Row, Transaction
from watership.testing.world import Process, Witness, World
from watership_orchestrator.arrivals import Shelf, Waiting
from watership_orchestrator.engine import PUBLISH_WINDOW_S
from watership_orchestrator.owed import OWED_LOOK_MS
from watership_orchestrator.records import DeadLetter

from tests.simulation import doubt_laws, flow_laws, log_laws, request_laws
from tests.simulation.evidence import Commit, Entry, LawBroken, copies_of
from tests.simulation.words import in_words, short

# The engine measures by its own clock, which may be 2 % slow.
WINDOW_S = PUBLISH_WINDOW_S * 1.03


class Laws(Witness):
    """Watches one world."""

    def __init__(self, batch_sizes: Sequence[int]) -> None:
        self.world: World = None  # type: ignore[assignment] # given by the story, which makes the world with these laws
        self.plans: dict[str, Plan] = {}
        self.states: dict[uuid.UUID, SagaState] = {}  # the folded logs
        self.entries: dict[uuid.UUID, list[Entry]] = {}
        self.broken: asyncio.Future[LawBroken] | None = None
        self.first: LawBroken | None = None
        self.routed_replies: list[tuple[int, StepReply]] = []  # with the number of effects before it
        self.replies: dict[str, StepReply] = {}  # by run
        self.signals: Mapping[str, Signal] = {}  # what was sent, by its id
        self.effects_so_far: Callable[[], int] = lambda: 0
        self.steps_clock = False  # the database's clock is moved in this seed
        self._batch_size_max = max(batch_sizes)
        self._dispatched: dict[tuple[object, ...], Commit] = {}  # by process and command
        self._handed: dict[tuple[object, ...], set[bool]] = {}  # by process and command: delivered before, or not
        self._turned: dict[uuid.UUID, Commit] = {}
        self._confirmed: set[str] = set()  # message ids, of commands without their generation
        self._refused: set[str] = set()  # correlation ids of requests that were answered with a refusal
        self._input_hashes: dict[uuid.UUID, str] = {}

    def breaks(self, law: str, words: str) -> None:
        """Notes the first broken law."""
        if self.first is None:
            self.first = LawBroken(law, words)
            self.world.tell("LAWS", f"BROKEN {self.first}")
            if self.broken is not None and not self.broken.done():
                self.broken.set_result(self.first)

    def check(self, law: str, holds: object, words: str) -> None:
        """``holds`` is the law."""
        if not holds:
            self.breaks(law, words)

    # --- commits

    def committed(self, transaction: Transaction) -> None:
        """Every law that speaks of rows and logs."""
        process = transaction.client
        assert isinstance(process, Process), "each process is its own line to the database"
        commit = Commit(self.world.loop.time(), process, process.bus.generation)
        written: dict[uuid.UUID, set[int]] = {}
        for row in transaction.log:
            written.setdefault(row.saga_id, set()).add(row.seq)
            self._entry(row, commit)
            self._law_09_one_clock(row, transaction)
        for saga_id, saga in transaction.rows.items():
            self._law_02_nothing_is_stuck(saga, transaction)
            self._law_07_pinned(saga)
            self._law_08_the_log_is_the_truth(saga_id, saga)
            self._law_11_starting_is_idempotent(saga_id, saga)
            entries = [entry for entry in self.entries.get(saga_id, ()) if entry.seq in written.get(saga_id, ())]
            decided = [(one.cause, one.changes) for one in entries]
            by_reaper = process.name.startswith("reaper")
            for effect in log_laws.must_owe(self.states[saga_id], decided, by_reaper=by_reaper):
                words = f"saga {saga_id.int} does not owe {effect}, and no message would bring it again"
                self.check("law_01_durable_before_visible", saga["owed"], words)
        moved = written.keys()
        for line in transaction.ledger:
            if line.saga_id not in moved and log_laws.is_forgotten(self.states.get(line.saga_id), line.message):
                self.breaks("law_06_none_is_forgotten", f"a late act of saga {line.saga_id.int} is only in the ledger")
        sagas = len(moved)
        self.check(
            "law_10_everything_has_a_limit",
            sagas <= self._batch_size_max,
            f"{sagas} sagas in one transaction, the limit is {self._batch_size_max}",
        )

    def _entry(self, row: LogRow, commit: Commit) -> None:
        saga_id, changes = row.saga_id, changes_from_json(row.changes)
        before = self.states.get(saga_id) or SagaState(str(saga_id))
        entries = self.entries.setdefault(saga_id, [])
        pinned = (change.plan_hash for change in changes if isinstance(change, c.Created | c.PlanPinned))
        plan = self.plans.get(next(pinned, before.plan_hash) or "")
        for law, words in log_laws.offences(plan, before, [entry.changes for entry in entries], row.seq, changes):
            self.breaks(law, f"saga {saga_id.int}, entry {row.seq} ({row.cause}): {words}")
        state = before.copy()
        state.seq = row.seq
        for change in changes:
            apply(state, change)
            if isinstance(change, c.Dispatched | c.Resent):
                key = (commit.process, str(saga_id), change.step, change.action.value, str(change.attempt))
                self._dispatched[key] = commit
            elif isinstance(change, c.CompensationBegan):
                self._turned.setdefault(saga_id, commit)
            for law, words in doubt_laws.offences(change, row.cause, entries, self.replies):
                self.breaks(law, f"saga {saga_id.int}, entry {row.seq} ({row.cause}): {words}")
        new = Entry(row.seq, row.at_ms, row.cause, changes)
        if plan is not None:
            for law, words in (
                *flow_laws.offences(plan, before, state, entries, new),
                *flow_laws.signal_offences(before, entries, new, self.signals),
            ):
                self.breaks(law, f"saga {saga_id.int}, entry {row.seq} ({row.cause}): {words}")
        self.states[saga_id] = state
        entries.append(new)
        if self.world.traced:
            words = ", ".join(in_words(change) for change in changes)
            self.world.tell(commit.process, f"commits saga {saga_id.int} #{row.seq} by {row.cause}: {words}")

    def _law_02_nothing_is_stuck(self, row: Row, transaction: Transaction) -> None:
        over = row["status"] in ("COMPLETED", "COMPENSATED", "FAILED") and not row["owed"]
        looked_at = row["wake_at_ms"] is not None or row["parked_reason"] is not None or row["paused"]
        self.check(
            "law_02_nothing_is_stuck", over or looked_at, f"saga {row['saga_id'].int}: nobody will look at it: {row}"
        )
        due, wake = row["due_at_ms"], row["wake_at_ms"]
        latest_ms = self.world.now_ms() + OWED_LOOK_MS + transaction.off_by_ms
        late = due is not None and (wake is None or wake > max(due, latest_ms))
        fine = not late or self.steps_clock  # it was told by the clock as it was then
        self.check("law_02_nothing_is_stuck", fine, f"saga {row['saga_id'].int}: due at {due}, woken at {wake}")

    def _law_07_pinned(self, row: Row) -> None:
        state = self.states[row["saga_id"]]
        self.check(
            "law_07_pinned",
            row["plan_hash"] == state.plan_hash,
            f"saga {row['saga_id'].int} began on plan {state.plan_hash}, and its row says {row['plan_hash']}",
        )

    def _law_08_the_log_is_the_truth(self, saga_id: uuid.UUID, row: Row) -> None:
        stored, folded = state_from_row(row), self.states.get(saga_id)
        self.check(
            "law_08_the_log_is_the_truth",
            stored == folded,
            f"saga {saga_id.int}: its row says {stored}, its log folds to {folded}",
        )

    def _law_09_one_clock(self, row: LogRow, transaction: Transaction) -> None:
        """What is written was judged by the database's clock: read in the transaction, or known, and checked by it."""
        off_by_ms = transaction.off_by_ms
        within = transaction.began_at_ms - off_by_ms <= row.at_ms <= self.world.now_ms() + off_by_ms
        self.check(
            "law_09_one_clock",
            within or self.steps_clock,
            f"saga {row.saga_id.int}, entry {row.seq}: at {row.at_ms}, but its transaction began at "
            f"{transaction.began_at_ms}, and it is {self.world.now_ms()}",
        )

    def _law_11_starting_is_idempotent(self, saga_id: uuid.UUID, row: Row) -> None:
        first = self._input_hashes.setdefault(saga_id, row["input_hash"])
        created = self.entries[saga_id][0].changes[0] if saga_id in self.entries else None
        fits = isinstance(created, c.Created) and codec.input_hash(created.name, created.context) == first
        self.check(
            "law_11_starting_is_idempotent",
            row["input_hash"] == first and fits,
            f"saga {saga_id.int}: its input changed, or is not what it was started with",
        )

    # --- publishing

    def publishing(self, process: Process, messages: Sequence[Message]) -> None:
        """Laws 1 and 3: what an orchestrator or reaper decided to send, when it does so."""
        now_s = self.world.loop.time()
        for message in messages:
            if self.world.traced:
                self.world.tell(process, f"publishes {short(message)}")
            if message.type == "admin-answer" and message.correlation_id is not None:
                body = read(message.type, message.body)
                if isinstance(body, AdminAnswer) and body.error is not None:
                    self._refused.add(message.correlation_id)
            if message.type == "step-reply":
                self._law_05_doubt_is_told(process, message)
            if message.type != "step-command":
                continue
            saga, step, action, attempt, generation = message.message_id.split(":")
            self._law_06_one_key_for_a_generation(message, uuid.UUID(saga), step, action, generation)
            decided = self._dispatched.get((process, saga, step, action, attempt))
            if decided is None:
                words = f"{process} sends {short(message)}, and has not committed that"
                self.breaks("law_01_durable_before_visible", words)
                continue
            self.check(
                "law_03_nothing_old_is_sent",
                now_s - decided.at_s <= WINDOW_S and process.bus.generation == decided.link,
                f"{process} sends {short(message)}, which it decided {now_s - decided.at_s:.1f} s ago, over link "
                f"{decided.link}; now it is {process.bus.generation}",
            )
            turn = self._turned.get(uuid.UUID(saga))
            self.check(
                "law_03_strictly_backward",
                action == Action.COMPENSATE.value or turn is None or turn.process is not process,
                f"{process} sends {short(message)}, and committed itself that the saga turns around",
            )

    def _law_05_doubt_is_told(self, process: Process, message: Message) -> None:
        """Only a worker knows that its command was delivered before: it must say so."""
        reply = read(message.type, message.body)
        assert isinstance(reply, StepReply)
        handed = self._handed.get((process, message.message_id.rpartition(":")[0]))
        words = f"{process} sends {short(message)}, and does not say that its command was delivered before"
        self.check("law_05_in_doubt_means_undone", reply.redelivered or handed != {True}, words)

    def _law_06_one_key_for_a_generation(
        self, message: Message, saga_id: uuid.UUID, step: str, action: str, generation: str
    ) -> None:
        key = codec.loads(message.body)["idempotency_key"]
        state = self.states[saga_id].peek(step) if saga_id in self.states else None
        newest = state.generation if state is not None and action == Action.COMPENSATE.value else 1
        of_action = (
            Action.COMPENSATE if action == Action.COMPENSATE.value else Action.ACT
        )  # who verifies asks by the act's
        self.check(
            "law_06_one_key_for_a_generation",
            key == f"{saga_id}:{step}:{of_action}:{generation}" and int(generation) <= newest,
            f"{short(message)} has the key {key}; the newest generation is {newest}",
        )

    def routed(self, process: Process, message: Message, fate: Fate) -> None:
        """What reached the broker."""
        if self.world.traced and fate is not Fate.CONFIRMED:
            self.world.tell("broker", f"{fate} {short(message)}")
        if fate is Fate.CONFIRMED and message.type == "step-reply":
            reply = read(message.type, message.body)
            assert isinstance(reply, StepReply)
            self.routed_replies.append((self.effects_so_far(), reply))
            self.replies[reply.run] = reply

    def published(self, process: Process, messages: Sequence[Message], fates: Sequence[Fate]) -> None:
        """What a process knows to be sent."""
        for message, fate in zip(messages, fates, strict=True):
            if self.world.traced and fate is not Fate.CONFIRMED:
                self.world.tell(process, f"is told {fate} of {short(message)}")
            if fate is not Fate.CONFIRMED:
                continue
            name = message.message_id
            self._confirmed.add(name.rsplit(":", 1)[0] if message.type == "step-command" else name)

    # --- acknowledging

    def handed_over(self, process: Process, delivery: Delivery) -> None:
        """For the trace; and a worker knows whether a command was delivered before."""
        if delivery.type == "step-command":
            command = (delivery.message_id or "").rpartition(":")[0]
            self._handed.setdefault((process, command), set()).add(delivery.redelivered)
        if self.world.traced:
            again = " again" if delivery.redelivered else ""
            self.world.tell(process, f"gets {short(delivery)}{again}")

    def rejected(self, process: Process, delivery: Delivery, *, requeue: bool) -> None:
        """For the trace; and a reply must not be thrown away."""
        if self.world.traced:
            self.world.tell(process, f"{'gives back' if requeue else 'throws away'} {short(delivery)}")
        if not requeue:
            self.check(
                "law_06_none_is_forgotten", delivery.type != "step-reply", f"{process} threw away {short(delivery)}"
            )

    def acked(self, process: Process, delivery: Delivery) -> None:
        """Law 1: what followed from a message is confirmed or owed before the broker forgets it."""
        if self.world.traced:
            self.world.tell(process, f"acknowledges {short(delivery)}")
        if "x-death" in delivery.headers:
            kept = [row.item for row in self.world.database.waiting.values() if isinstance(row.item, DeadLetter)]
            is_kept = any(letter.message_id == delivery.message_id for letter in kept)
            self.check(
                "law_06_none_is_forgotten", is_kept, f"{process} acknowledged {short(delivery)} and kept it nowhere"
            )
            return
        if delivery.type == "step-command":
            saga, step, action, attempt, _ = (delivery.message_id or "").split(":")
            replied = f"{saga}:{step}:{action}:{attempt}:"
            self.check(
                "law_01_durable_before_visible",
                any(name.startswith(replied) for name in self._confirmed),
                f"{process} acknowledged {short(delivery)}, and its reply is not confirmed",
            )
            return
        if delivery.type not in ("start-saga", "step-reply", "admin-request", "signal"):
            return
        message = read(delivery.type, delivery.body)
        if isinstance(message, StartSaga):
            state, input_hash = self.states.get(message.saga_id), self._input_hashes.get(message.saga_id)
            for law, words in request_laws.start_offences(message, state, input_hash):
                self.breaks(law, f"{short(delivery)}: {words}")
            self._consequences(delivery, message.saga_id, "start")
        elif isinstance(message, StepReply):
            self._law_06_none_is_forgotten(process, delivery, message)
        elif isinstance(message, Signal):
            self._promise_no_signal_is_lost(process, delivery, message)
        elif isinstance(message, AdminRequest) and message.saga_id is not None:
            self._law_12_every_hand_leaves_a_mark(delivery, message)

    def _law_06_none_is_forgotten(self, process: Process, delivery: Delivery, reply: StepReply) -> None:
        kind = "not_served" if reply.outcome == "not_served" else "reply"
        cause = f"{kind}:{reply.step}:{reply.action}:{reply.attempt}:{reply.run}"
        logged = any(entry.cause == cause for entry in self.entries.get(reply.saga_id, ()))
        text = delivery.body.decode()
        in_ledger = any(line.message == text for line in self.world.database.ledger)
        self.check(
            "law_06_none_is_forgotten",
            logged or in_ledger or kind == "not_served",
            f"{process} acknowledged {short(delivery)}, and neither log nor ledger has it",
        )
        self._consequences(delivery, reply.saga_id, cause)

    def _promise_no_signal_is_lost(self, process: Process, delivery: Delivery, signal: Signal) -> None:
        cause, database = f"signal:{signal.signal_id}", self.world.database
        logged = any(entry.cause == cause for entry in self.entries.get(signal.saga_id, ()))
        refused = any(line.message == delivery.body.decode() for line in database.ledger)
        kept = Waiting(Shelf.SIGNAL, (signal.saga_id, signal.signal_id)) in database.waiting
        words = f"{process} acknowledged {short(delivery)}, and neither log nor ledger has it, nor is it kept"
        self.check("promise_nothing_is_lost", logged or refused or kept, words)
        self.check(
            "law_06_signals_are_taken_once",
            not (logged and refused),
            f"{short(delivery)} was taken, and refused as well",
        )
        self._consequences(delivery, signal.saga_id, cause)

    def _law_12_every_hand_leaves_a_mark(self, delivery: Delivery, request: AdminRequest) -> None:
        assert request.saga_id is not None
        if delivery.correlation_id in self._refused:
            return
        cause = f"admin:{request.verb}:{delivery.message_id}"
        entries = [(one.seq, one.changes) for one in self.entries.get(request.saga_id, ()) if one.cause == cause]
        told = delivery.reply_to is not None  # of a refusal
        for law, words in request_laws.operator_offences(request, told=told, entries=entries):
            self.breaks(law, f"{short(delivery)}: {words}")
        self._consequences(delivery, request.saga_id, cause)

    def _consequences(self, delivery: Delivery, saga_id: uuid.UUID, cause: str) -> None:
        """Law 1: each effect of the entry with this cause is confirmed, owed, or overtaken since."""
        state, row = self.states.get(saga_id), self.world.database.sagas.get(saga_id)
        entry = next((entry for entry in self.entries.get(saga_id, ()) if entry.cause == cause), None)
        if entry is None or state is None or row is None or row["owed"]:
            return
        for effect in effects_of(entry.seq, entry.changes):
            if isinstance(effect, SendCommand):
                plan = self.plans.get(state.plan_hash or "")
                if effect.action is Action.ACT and plan is not None and not plan.by_name[effect.step].rerun:
                    continue  # it may have been sent, and must not run twice: at its deadline it is unknown
                name = f"{saga_id}:{effect.step}:{effect.action}:{effect.attempt}"
            elif any(
                isinstance(change, c.CompensationBegan)
                for later in self.entries[saga_id]
                for change in later.changes
                if later.seq > entry.seq
            ):
                continue  # it turned once more since: another end is told
            else:
                name = f"{saga_id}:{entry.seq}:saga-ended:event"
            wanted = log_laws.wanted(state, effect)
            if wanted and name not in self._confirmed and not self._comes_again(delivery):
                self.breaks(
                    "law_01_durable_before_visible",
                    f"{short(delivery)} is acknowledged, and {effect} is neither confirmed nor owed",
                )

    def _comes_again(self, delivery: Delivery) -> bool:
        """Whether another copy of the message is still at the broker: then that one is the outbox."""
        return copies_of(self.world.broker, delivery) > 1
