"""What became of the orders: one saga's timeline, a table, and the books of the shop, which must balance."""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import sys
import uuid
from collections import Counter
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from watership import SqlAlchemySagaStorage
from watership.demo.orders import Order, ShipByCourier, ShipByPost
from watership.demo.screen import Screen
from watership.demo.shop import CardDeclined, OutOfStock, ParcelRefused, Shop
from watership.machine.state import Status
from watership.saga.storage.protocol import SagaLogEntry, SagaStepStatus, SagaSummary

SHIPPING = {ShipByCourier.__name__, ShipByPost.__name__}
MINOR_DIGITS = {"JPY": 0}
SENT_AGAIN = "sent again"
MINUS = "\N{MINUS SIGN}"
WHY = {
    OutOfStock.__name__: "an item was out of stock: nothing to undo",
    CardDeclined.__name__: "the card was declined: stock released",
    ParcelRefused.__name__: "nobody could ship it: card refunded, stock released",
}
DID = {
    ("act", SagaStepStatus.STARTED): "[dim]sent[/]",
    ("act", SagaStepStatus.COMPLETED): "[green]done[/]",
    ("act", SagaStepStatus.FAILED): "[yellow]failed[/]",
    ("compensate", SagaStepStatus.STARTED): "[dim]undo sent[/]",
    ("compensate", SagaStepStatus.COMPLETED): "[green]undone[/]",
}


@dataclasses.dataclass(frozen=True)
class Standing:
    """Where all sagas stand at one moment, as their database tells it."""

    orders: int
    sagas: dict[uuid.UUID, SagaSummary]

    @classmethod
    async def read(cls, storage: SqlAlchemySagaStorage, orders: int) -> Standing:
        """Where they stand now."""
        return cls(orders, {saga.saga_id: saga for saga in await storage.list_sagas(limit=orders)})

    @property
    def open(self) -> set[uuid.UUID]:
        """The sagas that are in flight."""
        return {key for key, saga in self.sagas.items() if not (saga.status.terminal or saga.parked_reason)}

    @property
    def in_flight(self) -> int:
        """How many are in flight."""
        return len(self.open)

    @property
    def over(self) -> int:
        """How many have ended."""
        return len(self.sagas) - self.in_flight

    @property
    def shipping(self) -> list[uuid.UUID]:
        """The sagas that have charged a card and not shipped a parcel."""
        forward = (saga for saga in self.sagas.values() if saga.status is Status.RUNNING)
        return [saga.saga_id for saga in forward if saga.step in SHIPPING]


@dataclasses.dataclass(frozen=True)
class Kill:
    """The death of the first process: who, when, and where the sagas stood."""

    pid: int
    at_ms: int
    standing: Standing


class Account:
    """Tells what the two databases say. ``kill`` is what the demo did; the rest is read."""

    def __init__(
        self, screen: Screen, storage: SqlAlchemySagaStorage, shop: Shop, orders: dict[uuid.UUID, Order], kill: Kill
    ) -> None:
        self._screen, self._storage, self._shop, self._orders, self._kill = screen, storage, shop, orders, kill

    async def tell(self, end: Standing, database_url: str) -> bool:
        """The whole account; whether every saga has ended and the books balance."""
        asked_again = await self._shop.asked_again()
        shown = self._worth_showing(end, asked_again)
        self._screen.print()
        await self._timeline(shown, any(key.startswith(str(shown)) for key in asked_again))
        ended = await self._table(end, len(asked_again))
        balanced = await self._books()
        command, url = _how_it_is_called(), shlex.quote(database_url)
        self._screen.print("[bold]Look for yourself:[/]")
        self._screen.print(f"  {command} show {shown} --database-url {url}", wrap=False)
        self._screen.print(f"  {command} list --limit 10 --database-url {url}\n", wrap=False)
        return ended and balanced

    def _worth_showing(self, end: Standing, asked_again: list[str]) -> uuid.UUID:
        """A saga that was between charge and ship at the kill; best one whose parcel was asked for twice."""
        twice = {uuid.UUID(key.split(":")[0]) for key in asked_again}
        completed = [key for key in self._kill.standing.shipping if end.sagas[key].status is Status.COMPLETED]
        best = [key for key in completed if key in twice]
        return min(best or completed or self._kill.standing.shipping)

    async def _timeline(self, saga_id: uuid.UUID, twice: bool) -> None:
        order, lines = self._orders[saga_id], await self._storage.get_step_history(saga_id)
        began_ms = _ms(lines[0].timestamp.timestamp())
        rows = [(_ms(line.timestamp.timestamp()), line.step_name, *_words(line)) for line in lines]
        rows.append((self._kill.at_ms, "", f"[bold red]kill -9 {self._kill.pid}[/]", ""))
        table = Table.grid(padding=(0, 2))
        for at_ms, *cells in sorted(rows, key=lambda row: row[0]):
            table.add_row(f"  [dim]{(at_ms - began_ms) / 1000:+.3f} s[/]", *cells)
        self._screen.print(
            f"[bold]Order {order.number}[/], {escape(order.customer)} in {escape(order.city)}, "
            f"{order.currency} {_money(order.currency, order.total_minor)}: one of those between charge and ship"
        )
        self._screen.print(table)
        if twice:
            self._screen.print(
                "  [dim]The dead process had its parcel sent, and never learned so. The second asked again; the shop "
                "knew the key.[/]"
            )
        self._screen.print()

    async def _table(self, end: Standing, asked_again: int) -> bool:
        statuses = Counter(saga.status for saga in end.sagas.values() if not saga.parked_reason)
        completed, compensated = statuses[Status.COMPLETED], statuses[Status.COMPENSATED]
        interrupted = self._kill.standing.open
        recovered = len(interrupted - end.open)
        table = Table.grid(padding=(0, 2))
        table.add_column(justify="right")
        table.add_row("  [bold green]" + str(completed), "completed", "every step acted")
        by_post = await self._shop.sent_by_post()
        table.add_row(f"[cyan]{by_post}", "  of them fell back", "the courier was down, the post shipped it")
        table.add_row(f"[bold yellow]{compensated}", "compensated", "undone, in reverse order")
        for why, count in sorted((await self._reasons(end)).items(), key=lambda item: -item[1]):
            table.add_row(f"[yellow]{count}", "", why)
        table.add_row(f"[bold magenta]{recovered}", "recovered", "in flight at the kill, ended by the second process")
        table.add_row(f"[magenta]{asked_again}", "  asked twice", "of the shop, with the same key: done once")
        self._screen.print(f"[bold]{len(end.sagas)} orders[/]")
        self._screen.print(table)
        self._screen.print()
        return completed + compensated == len(self._orders) and recovered == len(interrupted)

    async def _reasons(self, end: Standing) -> Counter[str]:
        reasons: Counter[str] = Counter()
        for saga_id, saga in end.sagas.items():
            if saga.status is Status.COMPENSATED:
                record = await self._storage.load(saga_id)
                failure = record.state.failure if record is not None else None
                name = failure.type_name if failure is not None else "an operator"
                reasons[WHY.get(name, name)] += 1
        return reasons

    async def _books(self) -> bool:
        books = await self._shop.books()
        table = Table.grid(padding=(0, 1))
        for _ in range(7):
            table.add_column(justify="right")
        for currency, amounts in books.items():
            charged, refunded, shipped = (_money(currency, minor) for minor in amounts)
            fits = amounts[0] - amounts[1] == amounts[2]
            mark = "[bold green]✓[/]" if fits else "[bold red]does not balance[/]"
            table.add_row(
                f"  [bold]{currency}[/]  charged", charged, f"{MINUS} refunded", refunded, "= shipped", shipped, mark
            )
        self._screen.print("[bold]The shop's books[/]")
        self._screen.print(table)
        self._screen.print()
        return all(charged - refunded == shipped for charged, refunded, shipped in books.values())


def _words(line: SagaLogEntry) -> tuple[str, str]:
    if line.details == SENT_AGAIN:
        return f"[yellow]{SENT_AGAIN}[/]", "by the second process, with the same idempotency key"
    return DID.get((line.action, line.status), f"{line.action} {line.status}"), escape(line.details or "")


def _ms(at_s: float) -> int:
    return round(at_s * 1000)


def _money(currency: str, minor: int) -> str:
    digits = MINOR_DIGITS.get(currency, 2)
    return f"{minor / 10**digits:,.{digits}f}"


def _how_it_is_called() -> str:
    """What to type for `watership` here: its name if it is found by that, else its path."""
    own, here = Path(sys.executable).with_name("watership"), Path.cwd()
    if "UV" in os.environ and not own.is_relative_to(here):  # the environment is uv's own, and off the path afterwards
        return "uvx watership"
    found = shutil.which("watership")
    if not own.exists() or (found is not None and Path(found).samefile(own)):
        return "watership"
    return shlex.quote(str(own.relative_to(here) if own.is_relative_to(here) else own))
