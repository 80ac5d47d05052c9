"""The showing: starts the orders' process, kills it, starts another, and tells what became of every order.

All numbers are read: where sagas stand from the sagas' database, what was done in the world from the shop's.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
import uuid
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from rich.markup import escape

from watership import ConfigurationError, SqlAlchemySagaStorage, WatershipError
from watership.demo.account import Account, Kill, Standing
from watership.demo.orders import Order, read_orders
from watership.demo.screen import Bar, Screen
from watership.demo.shop import Shop

SAGAS, SHOP, LOG = "orders.db", "shop.db", "demo.log"
LOOK_EVERY_S = 0.1
KILL_AT = 0.4  # of the orders have ended
STUCK_AFTER_S = 120.0
END_WITHIN_S = 5.0


async def show(screen: Screen, directory: Path, limit: int) -> bool:
    """Runs the demo in ``directory``; whether the books balance. Raises `WatershipError` if it cannot be run."""
    orders = read_orders(limit)
    make_room(directory)
    sagas, shop_path, log = (directory / name for name in (SAGAS, SHOP, LOG))
    url = f"sqlite+aiosqlite:///{sagas.as_posix()}"
    storage = SqlAlchemySagaStorage(url)
    try:
        await storage.create_tables()
        async with Shop.open(shop_path) as shop:
            await shop.fill({item.sku for order in orders.values() for item in order.items})
            _introduce(screen, orders, sagas, shop_path)
            stage = Stage(screen, storage, len(orders), [str(limit), url, str(shop_path)], log)
            async with asyncio.timeout(STUCK_AFTER_S):
                kill = await stage.run_and_kill()
                end = await stage.run_to_the_end(kill)
            return await Account(screen, storage, shop, orders, kill).tell(end, url)
    except TimeoutError as error:
        raise WatershipError(f"the orders did not end within {STUCK_AFTER_S:g} s; {log} may say why") from error
    finally:
        await storage.close()


def make_room(directory: Path) -> None:
    """Every run is a fresh one. Raises `ConfigurationError` if the directory is not writable, or not ours to clear."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / LOG).exists():  # else an earlier run was here, and the databases are its own
            for path in (directory / SAGAS, directory / SHOP):
                if path.exists():
                    raise ConfigurationError(f"{path} is not the demo's; choose another directory with --directory")
        (directory / LOG).write_text("")
        for name in (SAGAS, SHOP):
            for suffix in ("", "-wal", "-shm"):
                (directory / f"{name}{suffix}").unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"the demo cannot write in {directory} ({error.strerror or error}); choose another directory with --directory"
        ) from error


def _introduce(screen: Screen, orders: dict[uuid.UUID, Order], sagas: Path, shop: Path) -> None:
    currencies = ", ".join(sorted({order.currency for order in orders.values()}))
    screen.print(
        f"\n[bold]{len(orders)} orders[/] in {currencies}. Each is a saga: reserve stock, charge the card, ship by "
        f"courier or else by post."
    )
    screen.print(f"[dim]No server: {escape(str(sagas))} has the sagas, {escape(str(shop))} is the shop's own.[/]\n")


class Stage:
    """The processes, one after the other, and the bar that follows them."""

    def __init__(
        self, screen: Screen, storage: SqlAlchemySagaStorage, orders: int, arguments: list[str], log: Path
    ) -> None:
        self._screen, self._storage, self._orders, self._arguments = screen, storage, orders, arguments
        self.log = log

    async def run_and_kill(self) -> Kill:
        """Starts the first process, and kills it while some sagas have charged a card and not shipped."""
        async with self._process() as process:
            with self._screen.bar(f"process {process.pid}", self._orders, 0) as bar:
                standing = await self._hold_at_a_bad_moment(process, bar)
            self._screen.print(
                f"\n[bold red]{standing.in_flight} sagas in flight, {len(standing.shipping)} of them between charge "
                f"and ship: kill -9 {process.pid}[/]\n"
            )
            at_ms = time.time_ns() // 1_000_000
            process.kill()
            await process.wait()
        return Kill(process.pid, at_ms, standing)

    async def run_to_the_end(self, kill: Kill) -> Standing:
        """Starts the second process, which has everything to do that is left."""
        async with self._process() as process:
            self._screen.print(
                f"A second process, {process.pid}, goes on. It takes up what {kill.pid} left once that one's leases "
                f"(5 s) have run out.\n"
            )
            with self._screen.bar(f"process {process.pid}", self._orders, kill.standing.over) as bar:
                while True:
                    standing = await self._look(process)
                    left = standing.orders - standing.over
                    waits = 0 < left == len(kill.standing.open & standing.open)
                    bar.to(standing.over, f"waiting for the leases of {kill.pid}" if waits else "")
                    if not left:
                        break
                    await asyncio.sleep(LOOK_EVERY_S)
            await asyncio.wait([asyncio.ensure_future(process.wait())], timeout=END_WITHIN_S)
        return standing

    async def _hold_at_a_bad_moment(self, process: Process, bar: Bar) -> Standing:
        """Holds the process while it is counted, so that the numbers are those of the moment of its death."""
        while True:
            standing = await self._look(process)
            bar.to(standing.over)
            if standing.over >= self._orders * KILL_AT and standing.shipping:
                if sys.platform == "win32":  # nothing can be held there: the numbers are a moment old
                    return standing
                process.send_signal(signal.SIGSTOP)
                standing = await self._look(process)
                if standing.shipping:
                    bar.to(standing.over)
                    return standing
                process.send_signal(signal.SIGCONT)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look(self, process: Process) -> Standing:
        """Where the sagas stand. Raises `WatershipError` if the process ended before them."""
        ended = process.returncode is not None  # asked first: what it did last is then to be seen
        standing = await Standing.read(self._storage, self._orders)
        if ended and standing.over < self._orders:
            raise WatershipError(f"process {process.pid} ended too early; {self.log} says why")
        return standing

    @asynccontextmanager
    async def _process(self) -> AsyncIterator[Process]:
        with self.log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "watership.demo.drive", *self._arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
