"""Exchanges and queues as values: what a namespace needs on the broker. Only a bus talks to RabbitMQ about them."""

from __future__ import annotations

import dataclasses
from enum import StrEnum


class ExchangeKind(StrEnum):
    """The exchange types that we use."""

    DIRECT = "direct"
    TOPIC = "topic"
    FANOUT = "fanout"


@dataclasses.dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange."""

    name: str
    kind: ExchangeKind


@dataclasses.dataclass(frozen=True, slots=True)
class Queue:
    """A durable quorum queue and its binding. Its arguments are the type and the dead-letter exchange alone.

    Limits are broker policies: a changed argument would break every later declare.
    """

    name: str
    exchange: str
    routing_key: str
    dead_letter_exchange: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Topology:
    """The names of one namespace. Many systems, and many tests, share one broker by it."""

    namespace: str

    @property
    def exchange(self) -> str:
        """The direct exchange that carries everything but events."""
        return self.namespace

    @property
    def events_exchange(self) -> str:
        """The topic exchange of what happened: ``saga.<name>.<event>``."""
        return f"{self.namespace}.events"

    @property
    def dead_exchange(self) -> str:
        """Where refused and poisonous messages go."""
        return f"{self.namespace}.dead"

    def queue_name(self, routing_key: str) -> str:
        """The name of the queue that is bound to ``routing_key``."""
        return f"{self.namespace}.{routing_key}"

    @staticmethod
    def step_key(queue: str) -> str:
        """The routing key of the commands of a step whose plan says ``queue``."""
        return f"step.{queue}"

    def exchanges(self) -> list[Exchange]:
        """All exchanges of the namespace."""
        return [
            Exchange(self.exchange, ExchangeKind.DIRECT),
            Exchange(self.events_exchange, ExchangeKind.TOPIC),
            Exchange(self.dead_exchange, ExchangeKind.FANOUT),
        ]

    def orchestrator_queues(self) -> list[Queue]:
        """Start, control, replies, admin, and the queue of dead letters."""
        keyed = [self._queue(key) for key in ("start", "control", "replies", "admin")]
        return [*keyed, Queue(self.dead_exchange, self.dead_exchange, "", None)]

    def step_queue(self, queue: str) -> Queue:
        """The queue that workers of a step consume."""
        return self._queue(self.step_key(queue))

    def _queue(self, key: str) -> Queue:
        return Queue(self.queue_name(key), self.exchange, key, self.dead_exchange)
