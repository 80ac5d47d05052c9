"""The shop that the demo's steps talk to: stock, cards and parcels in a SQLite file of its own.

It stands for the services of other teams, so it must never know a saga. It keeps the one rule that a service behind a
saga has to keep: a request with an idempotency key that it has seen changes nothing, and gets the first answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiosqlite

from watership import StepError

COURIERS_DOWN = {"Northline"}
SOLD_OUT = {"ROSE-1902", "FIG-BROWN"}
NO_MONEY = "0002"  # a card that ends so is declined
POST_TAKES_MAX_G = 10_000
PIECES_AT_FIRST = 10_000
ONE_WAY_S = 0.015, 0.075  # how long a request, or its answer, is on its way

SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS request (key TEXT PRIMARY KEY, times INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS stock (sku TEXT PRIMARY KEY, pieces INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS reservation (number TEXT NOT NULL, sku TEXT NOT NULL, pieces INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS charge (number TEXT NOT NULL, currency TEXT NOT NULL, minor INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS refund (number TEXT NOT NULL, currency TEXT NOT NULL, minor INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS parcel (number TEXT NOT NULL, carrier TEXT NOT NULL, tracking TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS reservation_number ON reservation (number);
CREATE INDEX IF NOT EXISTS charge_number ON charge (number);
"""


class OutOfStock(StepError):
    """An item is sold out. Nothing was reserved."""

    code = "out_of_stock"


class CardDeclined(StepError):
    """The bank said no. Nothing was charged."""

    code = "card_declined"


class CourierDown(StepError):
    """The courier's service does not answer. Nothing was shipped."""

    code = "courier_down"


class ParcelRefused(StepError):
    """The carrier does not take such a parcel. Nothing was shipped."""

    code = "parcel_refused"


class Shop:
    """The shop, open: ``async with Shop.open(path) as shop``."""

    def __init__(self, database: aiosqlite.Connection) -> None:
        self._database = database
        self._one_at_a_time = asyncio.Lock()  # all requests share the connection, and so its transaction

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path) -> AsyncIterator[Shop]:
        """Opens the shop's file, or makes it."""
        async with aiosqlite.connect(path) as database:
            await database.executescript(SCHEMA)
            yield cls(database)

    async def fill(self, skus: Iterable[str]) -> None:
        """Fills the shelves, but for what is sold out."""
        stock = [(sku, 0 if sku in SOLD_OUT else PIECES_AT_FIRST) for sku in sorted(skus)]
        await self._database.executemany("INSERT INTO stock VALUES (?, ?)", stock)
        await self._database.commit()

    async def reserve(self, key: str, number: str, pieces: Mapping[str, int]) -> None:
        """Takes pieces, by SKU, from the shelf. Raises `OutOfStock`."""
        async with self._request(key) as new:
            for sku, wanted in pieces.items() if new else ():
                take = "UPDATE stock SET pieces = pieces - ? WHERE sku = ? AND pieces >= ?"
                if (await self._database.execute(take, (wanted, sku, wanted))).rowcount == 0:
                    raise OutOfStock(f"{sku} is sold out")
                await self._database.execute("INSERT INTO reservation VALUES (?, ?, ?)", (number, sku, wanted))

    async def release(self, key: str, number: str) -> None:
        """Puts back what the order had reserved, if anything."""
        async with self._request(key) as new:
            if new:
                put_back = """UPDATE stock SET pieces = stock.pieces + reservation.pieces FROM reservation
                    WHERE reservation.number = ? AND reservation.sku = stock.sku"""
                await self._database.execute(put_back, (number,))
                await self._database.execute("DELETE FROM reservation WHERE number = ?", (number,))

    async def charge(self, key: str, number: str, card: str, currency: str, minor: int) -> str:
        """Takes the money; the charge's id. Raises `CardDeclined`."""
        async with self._request(key) as new:
            if card.endswith(NO_MONEY):
                raise CardDeclined(f"{card}: insufficient funds")
            if new:
                await self._database.execute("INSERT INTO charge VALUES (?, ?, ?)", (number, currency, minor))
        return f"ch_{_digest(key)}"

    async def refund(self, key: str, number: str) -> None:
        """Gives back what the order was charged, if anything."""
        async with self._request(key) as new:
            if new:
                give_back = "INSERT INTO refund SELECT number, currency, minor FROM charge WHERE number = ?"
                await self._database.execute(give_back, (number,))

    async def ship(self, key: str, number: str, carrier: str, weight_g: int) -> str:
        """Sends the parcel off; its tracking number. Raises `CourierDown` and `ParcelRefused`."""
        tracking = f"{carrier[:2].upper()}{_digest(key)}"
        async with self._request(key) as new:
            if carrier in COURIERS_DOWN:
                raise CourierDown(f"{carrier} does not answer")
            if carrier == "Post" and weight_g > POST_TAKES_MAX_G:
                raise ParcelRefused(f"the post takes {POST_TAKES_MAX_G / 1000:g} kg, this is {weight_g / 1000:g} kg")
            if new:
                await self._database.execute("INSERT INTO parcel VALUES (?, ?, ?)", (number, carrier, tracking))
        return tracking

    async def call_back_parcel(self, key: str, number: str) -> None:
        """Has the carrier bring the order's parcel back, if there is one."""
        async with self._request(key) as new:
            if new:
                await self._database.execute("DELETE FROM parcel WHERE number = ?", (number,))

    @asynccontextmanager
    async def _request(self, key: str) -> AsyncIterator[bool]:
        """One request in one transaction; whether its key is new.

        The key is written together with the effect: after a crash there are both or neither. A request that fails
        leaves no key, for it had no effect.
        """
        chance = random.Random(key)
        await asyncio.sleep(chance.uniform(*ONE_WAY_S))
        async with self._one_at_a_time:
            seen = "INSERT INTO request VALUES (?, 1) ON CONFLICT DO UPDATE SET times = times + 1 RETURNING times"
            try:
                rows = list(await self._database.execute_fetchall(seen, (key,)))
                yield rows[0][0] == 1
            except BaseException:
                await self._database.rollback()
                raise
            await self._database.commit()
        # Done, and the caller does not know it yet: whoever is killed here asks again.
        await asyncio.sleep(chance.uniform(*ONE_WAY_S))

    # --- the books

    async def books(self) -> dict[str, tuple[int, int, int]]:
        """Of each currency what was charged, refunded and shipped, in its smallest unit.

        A parcel is worth its order's one charge, so a card that was charged twice or a parcel that was sent twice shows.
        """
        sql = """SELECT currency, sum(charged), sum(refunded), sum(shipped) FROM (
                SELECT currency, minor AS charged, 0 AS refunded, 0 AS shipped FROM charge
                UNION ALL SELECT currency, 0, minor, 0 FROM refund
                UNION ALL SELECT paid.currency, 0, 0, paid.minor FROM parcel
                    JOIN (SELECT DISTINCT number, currency, minor FROM charge) AS paid USING (number)
            ) GROUP BY currency ORDER BY currency"""
        rows = await self._database.execute_fetchall(sql)
        return {currency: (charged, refunded, shipped) for currency, charged, refunded, shipped in rows}

    async def sent_by_post(self) -> int:
        """How many parcels the post has taken."""
        rows = list(await self._database.execute_fetchall("SELECT count(*) FROM parcel WHERE carrier = 'Post'"))
        return int(rows[0][0])

    async def asked_again(self) -> list[str]:
        """The keys of requests that came more than once, and were done once."""
        rows = await self._database.execute_fetchall("SELECT key FROM request WHERE times > 1 ORDER BY key")
        return [key for (key,) in rows]


def _digest(key: str) -> str:
    """The same for the same key: a repeated request gets the first one's answer."""
    return hashlib.sha256(key.encode()).hexdigest()[:10].upper()
