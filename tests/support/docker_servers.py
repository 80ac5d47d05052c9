"""RabbitMQ, PostgreSQL and MariaDB in containers of their own, by testcontainers. Runs in the keeper's process."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable, Iterator, Sequence

import docker  # type: ignore[import-untyped]
from docker.errors import DockerException  # type: ignore[import-untyped]
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer

from tests.support.endpoints import MARIADB, POSTGRESQL, RABBITMQ, Endpoint, Unavailable, wait_until_answering

IMAGES = {RABBITMQ: "rabbitmq:4-management", POSTGRESQL: "postgres:17", MARIADB: "mariadb:11"}
PORTS = {RABBITMQ: 5672, POSTGRESQL: 5432, MARIADB: 3306}
URLS = {
    RABBITMQ: "amqp://guest:guest@{host}:{port}/",
    POSTGRESQL: "postgresql+asyncpg://postgres:watership@{host}:{port}/postgres",
    MARIADB: "mysql+aiomysql://root@{host}:{port}/mysql",
}
ENVIRONMENT: dict[str, dict[str, str]] = {
    RABBITMQ: {},
    POSTGRESQL: {"POSTGRES_PASSWORD": "watership"},
    MARIADB: {"MARIADB_ALLOW_EMPTY_ROOT_PASSWORD": "1"},
}
START_WITHIN_S = 120


def has_engine(image: str | None = None) -> bool:
    """Whether a Docker engine answers, and has this image."""
    with contextlib.suppress(DockerException, OSError):
        client = docker.from_env(timeout=10)
        client.ping()
        if image is not None:
            client.images.get(image)
        client.close()
        return True
    with (
        warnings.catch_warnings()
    ):  # a client that is refused leaves its socket to the garbage collector, which complains
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    return False


@contextlib.contextmanager
def running(wanted: Sequence[str], say: Callable[[str], None]) -> Iterator[dict[str, Endpoint]]:
    """Start a container for each server that is wanted; remove them, and their volumes, at the end."""
    # Ryuk is one more image to pull, and the keeper outlives whatever happens to the test run: it cleans up itself.
    testcontainers_config.ryuk_disabled = True
    if not has_engine():
        raise Unavailable("no engine answers")
    say(f"servers: starting {' and '.join(IMAGES[server] for server in wanted)} in Docker")
    with contextlib.ExitStack() as stack:
        containers = {server: _start(server, stack) for server in wanted}
        yield {server: _endpoint(server, container) for server, container in containers.items()}


def _start(server: str, stack: contextlib.ExitStack) -> DockerContainer:
    container = DockerContainer(IMAGES[server]).with_exposed_ports(PORTS[server]).with_envs(**ENVIRONMENT[server])
    # Before the start: a container that starts and then fails us is removed too.
    stack.callback(container.stop)
    try:
        return container.start()
    except (DockerException, OSError) as error:
        raise Unavailable(f"{IMAGES[server]} did not start: {str(error).splitlines()[0]}") from error


def _endpoint(server: str, container: DockerContainer) -> Endpoint:
    """Where the container's server listens, once it answers.

    An open port is no sign of that: Docker's proxy listens before the server does, and the image of Postgres runs one
    server for its set-up and then another. So we ask in the server's own protocol.
    """
    url = URLS[server].format(host=container.get_container_host_ip(), port=container.get_exposed_port(PORTS[server]))

    def ended() -> bool:
        container.reload()
        return container.status not in {"created", "running"}

    wait_until_answering(server, url, timeout_s=START_WITHIN_S, ended=ended)
    return Endpoint(url, f"Docker, {IMAGES[server]}", shared=False)
