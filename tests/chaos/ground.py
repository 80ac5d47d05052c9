"""The servers of a chaos run: private ones, that may be killed and filled; or given ones, that may only be talked to.

Nothing here touches a server that the run did not start itself, nor the machine's own disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from watership.saga.storage import migrations

from tests.chaos.books import SCHEMA
from tests.chaos.guardian import ROOT, Guardian
from tests.support import apt_servers
from tests.support.apt_servers import Program
from tests.support.endpoints import POSTGRESQL, RABBITMQ, Unavailable

DISK_BYTES = 768 << 20
POLICIES = ROOT / "deploy" / "rabbitmq" / "policies.json"
# Small, so that a disk fills by what a test writes; and a slow machine is to have its disk for itself.
SAGAS_OPTIONS = ("max_wal_size=96MB", "min_wal_size=32MB")
BOOKS_OPTIONS = ("max_wal_size=256MB", "fsync=off")


class Ground(Protocol):
    """Where a run takes place. ``books_url`` is the participants' own database, on a server of its own if it can be."""

    @property
    def namespace(self) -> str: ...
    @property
    def broker_url(self) -> str: ...
    @property
    def database_url(self) -> str: ...
    @property
    def books_url(self) -> str: ...
    @property
    def description(self) -> str:
        """What the servers are, for people."""


@dataclasses.dataclass(frozen=True)
class GivenGround:
    """Servers that others started: they are not struck themselves."""

    namespace: str
    broker_url: str
    database_url: str
    books_url: str
    description: str = "servers that are not ours: only processes and links are struck"


class Server:
    """A private server that can be killed where it stands, and started again on the same data."""

    def __init__(self, program: Program, guardian: Guardian) -> None:
        self.program = program
        self._guardian = guardian
        self._process: subprocess.Popen[bytes] | None = None
        self.busy = asyncio.Lock()  # one thing at a time is done to it

    @property
    def is_running(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> subprocess.Popen[bytes]:
        """Starts it; does not wait."""
        self._process = self.program.start()
        self._guardian.began(self._process.pid)
        return self._process

    async def up(self) -> None:
        """Starts it if it is not running, and waits until it answers."""
        if not self.is_running:
            self.start()
        assert self._process is not None
        await asyncio.to_thread(self.program.wait, self._process)

    async def down(self, number: signal.Signals) -> None:
        """Ends it by a signal (SIGKILL: to all of its processes), and sees it gone."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if number is signal.SIGKILL:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
        await asyncio.to_thread(process.wait)
        self._guardian.ended(process.pid)

    async def control(self, *arguments: str) -> str:
        """`rabbitmqctl` on it. Raises Unavailable when it failed."""
        return await asyncio.to_thread(apt_servers.rabbitmqctl, self.program, *arguments)


class Disk:
    """A small file system for one server's data. It can be filled to the last byte, and emptied again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    @classmethod
    def mounted(cls, path: Path, guardian: Guardian) -> Disk:
        """A tmpfs on ``path``. Raises Unavailable where mounting is not allowed."""
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0711", "watership-chaos", str(path)]
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True)
        except OSError as error:
            raise Unavailable(f"mounting a small file system failed: {error}") from error
        if done.returncode != 0:
            raise Unavailable(f"mounting a small file system failed: {done.stderr.strip()}")
        guardian.mounted(path)
        return cls(path)

    def fill(self) -> int:
        """Takes all the room that is left; how many bytes that was."""
        room = shutil.disk_usage(self.path).free
        if room > DISK_BYTES:
            raise RuntimeError(f"{self.path} is not the small file system that it should be")
        with self._ballast.open("wb") as ballast:
            if room:
                os.posix_fallocate(ballast.fileno(), 0, room)
        return room

    def empty(self) -> None:
        """Gives it back."""
        self._ballast.unlink(missing_ok=True)


@dataclasses.dataclass
class PrivateGround:
    """A broker, the sagas' database and the participants' database, all of this run alone. Made by `private_ground`."""

    broker: Server
    sagas: Server
    books: Server
    disk: Disk | None
    disk_trouble: str
    namespace: str = "chaos"
    description: str = "private servers from the installed packages, on ports of their own"

    @property
    def broker_url(self) -> str:
        return self.broker.program.url

    @property
    def database_url(self) -> str:
        return self.sagas.program.url

    @property
    def books_url(self) -> str:
        return self.books.program.url


def why_not_private() -> str:
    """Why no private servers can be had on this host; empty if they can."""
    missing = [server for server in (RABBITMQ, POSTGRESQL) if not apt_servers.is_installed(server)]
    if missing:
        return f"{' and '.join(apt_servers.PACKAGES[server] for server in missing)} not installed"
    return apt_servers.why_not()


@contextlib.asynccontextmanager
async def private_ground(guardian: Guardian, *, small_disk: bool) -> AsyncIterator[PrivateGround]:
    """Three private servers, up and ready: policies imported, schema migrated. Raises Unavailable."""
    if refusal := why_not_private():
        raise Unavailable(refusal)
    home = _home(guardian)
    disk, trouble, place = None, "", home
    if small_disk:
        try:
            disk = Disk.mounted(home / "disk", guardian)
            place = disk.path
        except Unavailable as why:
            trouble = str(why)
    names, broker_program = apt_servers.prepare_rabbitmq(home)
    names_server = Server(names, guardian)
    broker = Server(broker_program, guardian)
    await asyncio.to_thread(apt_servers.wait_for_name_server, names, names_server.start())
    broker.start()  # it takes the longest: the others come up meanwhile
    sagas_program = await asyncio.to_thread(apt_servers.prepare_postgresql, place, "sagas", SAGAS_OPTIONS)
    books_program = await asyncio.to_thread(apt_servers.prepare_postgresql, home, "books", BOOKS_OPTIONS)
    sagas, books = Server(sagas_program, guardian), Server(books_program, guardian)
    servers = [names_server, broker, sagas, books]
    try:
        await asyncio.gather(sagas.up(), books.up())
        await migrations.upgrade(sagas.program.url)
        await run_sql(books.program.url, *SCHEMA)
        await broker.up()
        await _install_policies(broker)
        yield PrivateGround(broker, sagas, books, disk, trouble)
    finally:
        for server in servers:
            await server.down(signal.SIGKILL)


def _home(guardian: Guardian) -> Path:
    home = Path(tempfile.mkdtemp(prefix="watership-chaos-"))
    guardian.made(home)
    home.chmod(0o711)  # the servers run as users of their own, and only pass through
    return home


async def _install_policies(broker: Server) -> None:
    copy = broker.program.data / "policies.json"  # the broker's user may not read where we are
    shutil.copy(POLICIES, copy)
    copy.chmod(0o644)
    await broker.control("import_definitions", str(copy))


async def run_sql(url: str, *statements: str) -> None:
    """Runs statements on a database, each by itself."""
    engine = create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        for statement in statements:
            await connection.execute(sa.text(statement))
    await engine.dispose()
