"""What AMQP cannot do on a broker: make a virtual host, list queues. By RabbitMQ's HTTP API, or by its command line."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from typing import Any, Protocol
from urllib.parse import quote, unquote, urlsplit

LOOPBACK = {"127.0.0.1", "localhost", "::1"}
MANAGEMENT_PORT = 15672
EPMD_PORT = 4369
ANSWER_WITHIN_S = 15


class BrokerAdmin(Protocol):
    """A door to the broker's administration. Every method raises OSError when it is refused."""

    def add_virtual_host(self, name: str, user: str) -> None:
        """Make a virtual host in which ``user`` may do everything."""

    def delete_virtual_host(self, name: str) -> None:
        """Delete it, with all that is in it."""

    def queues(self, virtual_host: str) -> list[str]:
        """The names of all queues."""


class Management:
    """The HTTP API of the management plugin, on its default port, with the credentials of the broker's URL."""

    def __init__(self, broker_url: str) -> None:
        url = urlsplit(broker_url)
        self._root = f"http://{url.hostname}:{MANAGEMENT_PORT}/api"
        credentials = f"{unquote(url.username or 'guest')}:{unquote(url.password or 'guest')}"
        self._authorization = "Basic " + base64.b64encode(credentials.encode()).decode()

    def add_virtual_host(self, name: str, user: str) -> None:
        """Make a virtual host in which ``user`` may do everything."""
        self._ask("PUT", f"/vhosts/{quote(name, safe='')}")
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        self._ask("PUT", f"/permissions/{quote(name, safe='')}/{quote(user, safe='')}", everything)

    def delete_virtual_host(self, name: str) -> None:
        """Delete it, with all that is in it."""
        self._ask("DELETE", f"/vhosts/{quote(name, safe='')}")

    def queues(self, virtual_host: str) -> list[str]:
        """The names of all queues."""
        answer = self._ask("GET", f"/queues/{quote(virtual_host, safe='')}?columns=name&disable_stats=true")
        return [queue["name"] for queue in answer]

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        headers = {"Authorization": self._authorization, "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._root + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=ANSWER_WITHIN_S) as response:
            text = response.read()
        return json.loads(text) if text else None


class CommandLine:
    """`rabbitmqctl` of this host: open to root."""

    def add_virtual_host(self, name: str, user: str) -> None:
        """Make a virtual host in which ``user`` may do everything."""
        self._run("add_vhost", name)
        self._run("set_permissions", "--vhost", name, user, ".*", ".*", ".*")

    def delete_virtual_host(self, name: str) -> None:
        """Delete it, with all that is in it."""
        self._run("delete_vhost", name)

    def queues(self, virtual_host: str) -> list[str]:
        """The names of all queues."""
        return self._run("--no-table-headers", "list_queues", "--vhost", virtual_host, "name").split()

    @staticmethod
    def _run(*arguments: str) -> str:
        command = ["rabbitmqctl", "--quiet", *arguments]
        try:
            done = subprocess.run(
                command, check=True, text=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=ANSWER_WITHIN_S
            )
        except subprocess.SubprocessError as error:
            raise OSError(f"{' '.join(command)} failed: {error}") from error
        return done.stdout


def doors(broker_url: str) -> list[BrokerAdmin]:
    """The doors to try, the quick one first. The command line speaks only for a broker on this host."""
    found: list[BrokerAdmin] = [Management(broker_url)]
    on_this_host = urlsplit(broker_url).hostname in LOOPBACK and shutil.which("rabbitmqctl")
    if on_this_host and _listens(EPMD_PORT):
        found.append(CommandLine())
    return found


def _listens(port: int) -> bool:
    """Without Erlang's name server this host runs no broker; and the command line would start one and leave it behind."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
