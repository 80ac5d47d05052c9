"""The process that removes what a test run made on servers that are not its own: `python -m tests.support.janitor`.

Like the keeper it acts when its standard input closes, so a run that is killed leaves nothing behind either. It removes
by name alone: the databases and the virtual host of the run's random name, or the queues of the run's random prefix.
"""

from __future__ import annotations

import contextlib
import json
import sys

import pika

from tests.support import broker_admin
from tests.support.endpoints import RABBITMQ, Unavailable, connect_postgresql, connect_rabbitmq, run, version
from tests.support.keeper import leave_signals_to_the_run


async def drop_databases(database_url: str, name: str) -> None:
    """Drop every database whose name begins with ``name``, whoever is connected."""
    connection = await connect_postgresql(database_url)
    try:
        for row in await connection.fetch("SELECT datname FROM pg_database WHERE starts_with(datname, $1)", name):
            await connection.execute(f'DROP DATABASE IF EXISTS "{row[0]}" WITH (FORCE)')
    finally:
        await connection.close()


def delete_virtual_host(broker_url: str, name: str) -> None:
    """Delete the virtual host ``name``, by whichever door it was made."""
    for door in broker_admin.doors(broker_url):
        with contextlib.suppress(OSError):
            door.delete_virtual_host(name)
    try:
        version(RABBITMQ, broker_url)
    except Unavailable:
        return
    raise Unavailable(f"the virtual host {name} could not be deleted")


def delete_queues(broker_url: str, prefix: str) -> None:
    """Delete the queues of steps that no test named, if the broker can be asked what it has."""
    virtual_host = pika.URLParameters(broker_url).virtual_host
    for door in broker_admin.doors(broker_url):
        with contextlib.suppress(OSError):
            names = [name for name in door.queues(virtual_host) if name.startswith(prefix)]
            connection = connect_rabbitmq(broker_url)
            for name in names:
                connection.channel().queue_delete(name)
            connection.close()
            return


def clean(name: str, prefix: str, broker_url: str, database_url: str) -> list[str]:
    """Remove all of the run ``name``; what could not be removed, in words. One server's trouble does not spare the other."""

    def databases() -> None:
        run(drop_databases(database_url, name))

    def broker() -> None:
        if broker_url.endswith(f"/{name}"):
            delete_virtual_host(broker_url, name)
        else:
            delete_queues(broker_url, prefix)

    troubles = []
    for remove in (databases, broker):
        try:
            remove()
        except Unavailable as why:
            troubles.append(str(why))
    return troubles


def main() -> int:
    """Read what to remove, wait for the end of the run, remove it. The exit code says whether all is gone."""
    leave_signals_to_the_run()
    orders = json.loads(sys.stdin.readline())  # not in the arguments, where everybody on the host reads passwords
    sys.stdin.read()
    troubles = clean(**orders)
    for trouble in troubles:
        sys.stderr.write(f"cleaning up after the tests: {trouble}\n")
    return 1 if troubles else 0


if __name__ == "__main__":
    sys.exit(main())
