"""Renews leases from a thread of its own, so that a handler that blocks the event loop does not lose its saga.

It has its own event loop and opens a connection for each round, so it shares nothing with the loop that it guards. It
extends only what still holds (the epoch is ours, and the lease was not given up), and it runs only while something is
held. It is a daemon: it never keeps a process from ending.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import uuid

import sqlalchemy as sa

from watership.saga.storage.database import Database
from watership.saga.storage.engines import make_engine
from watership.saga.storage.protocol import LEASE_MS, Lease

_log = logging.getLogger("watership.storage")


class LeaseThread:
    """Keeps the leases of one process on one database. `hold` and `drop` are cheap: every saga calls them."""

    def __init__(self, url: sa.URL, namespace: str, *, lease_ms: int = LEASE_MS) -> None:
        self._url, self._namespace, self._lease_ms = url, namespace, lease_ms
        self._held: dict[uuid.UUID, Lease] = {}
        self._changed = threading.Condition()
        self._stopped = False
        self._asleep = False
        self._thread: threading.Thread | None = None

    def hold(self, lease: Lease) -> None:
        """Renews this lease until `drop`."""
        with self._changed:
            self._held[lease.saga_id] = lease
            if self._stopped:
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="watership-leases", daemon=True)
                self._thread.start()
            elif self._asleep:
                self._changed.notify()

    def drop(self, lease: Lease) -> None:
        """Renews it no more. A later lease of the same saga stays."""
        with self._changed:
            if self._held.get(lease.saga_id) == lease:
                del self._held[lease.saga_id]

    def stop(self) -> None:
        """Ends the thread; does not wait for it."""
        with self._changed:
            self._stopped = True
            self._held.clear()
            self._changed.notify()

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            failed = False
            while (leases := self._next_round()) is not None:
                try:
                    runner.run(self._renew(leases))
                    failed = False
                except Exception as error:  # noqa: BLE001  # whatever it was, the other rounds go on
                    # The next round tries again; if none succeeds, the epoch keeps us from writing.
                    level = logging.DEBUG if failed else logging.WARNING  # once, not every second
                    _log.log(level, "the leases of %d sagas could not be renewed: %s", len(leases), error)
                    failed = True

    def _next_round(self) -> list[Lease] | None:
        """Waits for the next round; None: it is over. A round comes a quarter of a lease after something was held."""
        with self._changed:
            while not self._stopped:
                self._asleep = True
                self._changed.wait_for(lambda: self._stopped or bool(self._held))
                self._asleep = False
                self._changed.wait_for(lambda: self._stopped, timeout=self._lease_ms / 4_000)
                if self._held:
                    return list(self._held.values())
        return None

    async def _renew(self, leases: list[Lease]) -> None:
        engine = make_engine(self._url, pooled=False, timeout_s=max(self._lease_ms / 2_000, 0.5))
        database = Database(engine, self._namespace, owned=True)
        try:
            await database.write(lambda connection: database.queries.renew(connection, leases, self._lease_ms))
        finally:
            await database.close()
