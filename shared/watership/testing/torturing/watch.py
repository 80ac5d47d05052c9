"""Sees every point and message of a run, writes them down, and does at some of them what a trial says.

It also keeps watch over the engine's first promise, whose breach a run may survive by luck: nothing is acknowledged before
what follows from it is confirmed, or owed in the saga's row.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence

from watership.bus.protocol import Delivery, Fate, Message
from watership.machine import changes as c
from watership.machine.effects import SendCommand, effects_of
from watership.machine.state import Action, Phase, Status
from watership.messages import ReplyOutcome, StepCommand, StepReply, WireMessage, read
from watership.saga.storage.rows import changes_from_json, state_from_row
from watership.testing.each_part import parts_of
from watership.testing.memory_database import Transaction
from watership.testing.mischief import WELL, Act, Crash, NoMischief, Pause, Sending
from watership.testing.torturing.points import GETS, SENDS, Fault, Harm, Point, Seen
from watership.testing.world import Process, Witness, World

CUT_S = 0.5
LATE_S = 20.0
RESTART_S = 1.0
SETTLE_S = 10.0  # from the last harm until every retry in memory has had its chance

_SENDING = {
    Harm.LOST: Sending(copies=0),
    Harm.UNTOLD: Sending(confirmed=False),
    Harm.TWICE: Sending(copies=2),
    Harm.LATE: Sending(late_s=LATE_S),
}


class Watch(NoMischief, Witness):
    """Mischief and witness of one world. It sees nothing until `arm`, so that a run begins when its services are ready."""

    def __init__(self, faults: Sequence[Fault], stop_s: float, *, records: bool) -> None:
        self.world: World | None = None
        self.harms: Mapping[Point, Harm] = {fault.point: fault.harm for fault in faults}
        self.happened: list[Point] = []
        self.seen: list[Seen] = []
        self.offences: list[str] = []
        self._turned: asyncio.Event | None = None  # set, and replaced, whenever something is committed
        self.busy_until_s = 0.0
        self.stage = "start"
        self.waits: set[str] = set()  # names of the signals that the saga waits for
        self._stop_s = stop_s
        self._records = records
        self._counts: Counter[tuple[str, str]] = Counter()
        self._places: Counter[tuple[str, str, str]] = Counter()
        self._look: list[Seen] | None = None  # a reaper's look that may yet find nothing
        self._sending: dict[str, list[str]] = {}  # by role: what it publishes now
        self._last_about: dict[tuple[str, str], str] = {}  # what "committed" and "acked" are about
        self._confirmed: set[tuple[str, str]] = set()  # by type and id: a reply is named like its command
        self._armed = False

    def arm(self, world: World) -> None:
        """From here on it sees."""
        self.world = world
        self._armed = True

    def disarm(self) -> None:
        """Nothing more goes wrong."""
        self._armed = False

    async def turn(self) -> None:
        """Waits until something is committed."""
        if self._turned is None:
            self._turned = asyncio.Event()
        await self._turned.wait()

    def tell(self, who: object, words: str) -> None:
        """A line for whoever reads along."""
        if self._armed and self.world is not None and self.world.traced:
            self.world.tell(who, words)

    # --- points

    def at(self, process: str, point: str) -> Act | None:
        """See `Mischief.at`."""
        if not self._armed:
            return None
        role = role_of(process)
        about = self._last_about.get((role, point), "")
        if point == "publish" and self._sending.get(role):
            about = self._sending[role].pop(0)
        match self._harm_at(role, point, about):
            case Harm.CRASH:
                self._busy(RESTART_S + SETTLE_S)
                return Crash()
            case Harm.STOP:
                self.replace(process)
                return Pause(self._stop_s)
            case Harm.CUT:
                self._cut(process)
        return None

    def suspended(self, process: Process, name: str) -> None:
        """A handler gave way: it cannot be asked to wait here, only be ended or stopped."""
        assert self.world is not None
        act = self.at(process.name, name)
        if isinstance(act, Crash):
            self.world.crash(process)
        elif isinstance(act, Pause):
            self.world.pause(process, act.seconds)

    def replace(self, process: str) -> None:
        """Somebody starts another process in the place of one that stands still."""
        world = self.world
        assert world is not None
        old = world.processes[role_of(process)]
        self._busy(self._stop_s + SETTLE_S)
        world.loop.call_later(RESTART_S, world.start, old.role, old.make, context=contextvars.Context())

    def sending(self, process: str, message: Message) -> Sending:
        """See `Mischief.sending`."""
        label = label_of(message)
        if not self._armed or label is None:
            return WELL
        harm = self._harm_at(role_of(process), SENDS + label, label)
        if harm is None:
            return WELL
        self._busy(LATE_S + SETTLE_S)
        return _SENDING[harm]

    def handed_over(self, process: Process, delivery: Delivery) -> None:
        """See `Witness.handed_over`."""
        label = label_of(delivery)
        if not self._armed or label is None:
            return
        self.tell(process, f"gets {label}{' again' if delivery.redelivered else ''}")
        if self._harm_at(process.role, GETS + label, label) is Harm.CUT:
            self._cut(process.name)

    def _harm_at(self, role: str, name: str, about: str) -> Harm | None:
        self._counts[role, name] += 1
        point = Point(role, name, self._counts[role, name])
        if self._records:
            self._note(point, about)
        harm = self.harms.get(point)
        if harm is not None:
            self.happened.append(point)
        return harm

    def _note(self, point: Point, about: str) -> None:
        place = (self.stage, point.role, point.name)
        seen = Seen(point, self.stage, self._places[place], about)
        self._places[place] += 1
        if point.role == "reaper" and point.name in ("begin", "starts", "signals", "dead letters"):
            self._look = []
        if point.role == "reaper" and self._look is not None:
            self._look.append(seen)
        else:
            self.seen.append(seen)

    def _found_something(self, role: str) -> None:
        """The reaper's look is worth torturing."""
        if role == "reaper" and self._look is not None:
            self.seen.extend(self._look)
            self._look = None

    def _cut(self, process: str) -> None:
        assert self.world is not None
        running = self.world.processes[role_of(process)]
        self._busy(CUT_S + SETTLE_S)
        if running.name == process:
            self.world.cut(running, CUT_S)

    def _busy(self, seconds: float) -> None:
        assert self.world is not None
        self.busy_until_s = max(self.busy_until_s, self.world.loop.time() + seconds)

    # --- what is seen

    def publishing(self, process: Process, messages: Sequence[Message]) -> None:
        """See `Witness.publishing`."""
        self._found_something(process.role)
        self._sending[process.role] = [label_of(message) or "a message" for message in messages]

    def routed(self, process: Process, message: Message, fate: Fate) -> None:
        """See `Witness.routed`."""
        if label_of(message) is not None:
            self.tell(process, f"sends {label_of(message)}")

    def published(self, process: Process, messages: Sequence[Message], fates: Sequence[Fate]) -> None:
        """See `Witness.published`."""
        for message, fate in zip(messages, fates, strict=True):
            if fate is not Fate.CONFIRMED:
                self.tell(process, f"is not told what became of {label_of(message) or 'a message'}")
            if fate is Fate.CONFIRMED:
                self._confirmed.add((message.type, message.message_id))
        self._tell_last(process.role, "published", label_of(messages[0]) or "" if messages else "")

    def acked(self, process: Process, delivery: Delivery) -> None:
        """See `Witness.acked`."""
        label = label_of(delivery) or ""
        if label:
            self.tell(process, f"acknowledges {label}")
        self._tell_last(process.role, "ack", label)
        self._last_about[process.role, "acked"] = label
        if delivery.type == "step-command":
            self._must_have_replied(process, delivery, label)
        elif delivery.type in ("start-saga", "step-reply"):
            self._must_have_sent(process, delivery, label)

    def committed(self, transaction: Transaction) -> None:
        """See `Witness.committed`."""
        if self._turned is not None:
            self._turned.set()
            self._turned = None
        if not transaction.log:
            return
        changes = [change for row in transaction.log for change in changes_from_json(row.changes)]
        role = getattr(transaction.client, "role", "")
        self._found_something(role)
        words = decision_words(changes)
        self.tell(transaction.client, f"commits {words or 'a transition'}")
        if self._records:
            self._tell_last(role, "commit", words)
            self._last_about[role, "committed"] = words
        for change in changes:
            self._move_on(change)

    def _move_on(self, change: c.Change) -> None:
        if isinstance(change, c.Dispatched | c.Resent):
            self.stage = f"{change.step}.{change.action}"
        elif isinstance(change, c.Waiting):
            self.stage = change.step
            self.waits.add(change.step)
        elif isinstance(change, c.Signalled | c.Elapsed):
            self.waits.discard(change.step)
        elif isinstance(change, c.Completed | c.Compensated):
            self.stage = change.kind

    def _tell_last(self, role: str, name: str, about: str) -> None:
        """What a point was about is known only after it."""
        if self._records:
            for seen in reversed(self.seen):
                if seen.point.role == role and seen.point.name == name:
                    seen.about = about
                    return

    # --- the first promise

    def _must_have_replied(self, process: Process, delivery: Delivery, label: str) -> None:
        command = (delivery.message_id or "").rsplit(":", 1)[0]
        if not self._is_confirmed(StepReply.kind, f"{command}:"):
            self._break(f"the {process.role} acknowledged {label}, and the broker had not confirmed its reply")

    def _must_have_sent(self, process: Process, delivery: Delivery, label: str) -> None:
        assert self.world is not None
        message = read(delivery.type, delivery.body)
        saga_id: uuid.UUID = message.saga_id  # type: ignore[attr-defined] # a start or a reply has one
        row = self.world.database.sagas.get(saga_id)
        cause = _cause_of(message) if isinstance(message, StepReply) else "start"
        entry = next((entry for entry in self.world.database.logs.get(saga_id, ()) if entry.cause == cause), None)
        if entry is None and not self._is_kept(message, delivery):
            self._break(f"the {process.role} acknowledged {label}, and neither log nor ledger has it")
        if row is None or row["owed"] or entry is None or self._comes_again(delivery):
            return
        state = state_from_row(row)
        backwards = state.status is Status.COMPENSATING
        for effect in effects_of(entry.seq, changes_from_json(entry.changes)):
            if not isinstance(effect, SendCommand) or (backwards and effect.action is Action.ACT):
                continue
            command = f"{saga_id}:{effect.step}:{effect.action}:{effect.attempt}:"
            awaited = state.step(effect.step).of(effect.action).phase is Phase.AWAITED
            awaited = awaited and state.awaits(effect.step, effect.action, effect.attempt)
            if awaited and not self._is_confirmed(StepCommand.kind, command):
                self._break(
                    f"the {process.role} acknowledged {label}, and the broker had not confirmed the command "
                    f"{effect.step}.{effect.action} that follows from it"
                )

    def _is_kept(self, message: WireMessage, delivery: Delivery) -> bool:
        assert self.world is not None
        ran = not isinstance(message, StepReply) or message.outcome is not ReplyOutcome.NOT_SERVED
        text = delivery.body.decode()
        return not ran or any(line.message == text for line in self.world.database.ledger)

    def _is_confirmed(self, kind: str, name: str) -> bool:
        return any(one == kind and known.startswith(name) for one, known in self._confirmed)

    def _comes_again(self, delivery: Delivery) -> bool:
        """Whether another copy of it waits at the broker: then that one will see to it."""
        assert self.world is not None
        return any(
            part.message_id == delivery.message_id
            for one in self.world.broker.peek(delivery.queue)
            for part in parts_of(one)
        )

    def _break(self, sentence: str) -> None:
        if sentence not in self.offences:
            self.offences.append(sentence)


def role_of(process: str) -> str:
    """The second orchestrator is in the first one's role."""
    return process.split("#", 1)[0]


def label_of(message: Message | Delivery) -> str | None:
    """A message of a saga in words; None: it is of none."""
    name = message.message_id or ""
    if message.type in ("step-command", "step-reply"):
        with contextlib.suppress(ValueError):
            step, action, attempt, _ = name.split(":", 1)[1].rsplit(":", 3)
            what = "the command" if message.type == "step-command" else "the reply of"
            return f"{what} {step}.{action}" + (f" (attempt {attempt})" if attempt != "1" else "")
    if message.type == "signal" and message.correlation_id is not None:
        return f"the signal {message.correlation_id}"
    return {"start-saga": "the start", "saga-ended": "the news of the end", "step-emitted": "an event"}.get(
        message.type or ""
    )


def decision_words(changes: Sequence[c.Change]) -> str:
    """What a transaction decided, in words."""
    words = ""
    for change in changes:
        if isinstance(change, c.Dispatched | c.Resent):
            words = f"that {change.step}.{change.action} is sent"
        elif isinstance(change, c.Completed):
            words = "that the saga is completed"
        elif isinstance(change, c.Compensated):
            words = "that the saga is compensated"
        elif isinstance(change, c.Parked):
            words = "that the saga is parked"
        elif isinstance(change, c.Delayed) and not words:
            words = f"that {change.step}.{change.action} is tried again later"
        elif isinstance(change, c.Waiting) and not words:
            words = f"that the saga waits at {change.step}"
    return words


def _cause_of(reply: StepReply) -> str:
    return f"reply:{reply.step}:{reply.action}:{reply.attempt}:{reply.run}"
