"""What every test may ask for: real servers, a clean piece of them, and processes that end with the test.

A test that needs servers is marked `servers`, by hand or by asking for one of the fixtures here that stand on them.
They are sought only when the run selects such a test; the last line of the output says which they were.
"""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.support import flow_steps
from tests.support.endpoints import Unavailable
from tests.support.processes import Processes
from tests.support.servers import Servers, Session, open_session

STAND_ON_SERVERS = {"servers", "broker_url", "namespace", "step_queues", "database_url", "mariadb_url"}
SESSION = pytest.StashKey[Session]()
PROCESSES = pytest.StashKey[Processes]()
OUTPUT_SHOWN_CHARS = 20_000


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark, before `-m` chooses, what needs servers by its fixtures."""
    for item in items:
        if STAND_ON_SERVERS & set(getattr(item, "fixturenames", ())):
            item.add_marker("servers")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Find the servers before the first test, if one of the selected tests needs them."""
    config = session.config
    if config.option.collectonly or not any(item.get_closest_marker("servers") for item in session.items):
        return
    # A terminate is a Ctrl-C: pytest then cleans up what we have on servers that are not ours.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    reporter = config.pluginmanager.getplugin("terminalreporter")
    try:
        config.stash[SESSION] = open_session(reporter.write_line)
    except Unavailable as why:
        raise pytest.UsageError(str(why)) from why


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, object, object]:
    """Give the servers back, and say which they were: after pytest's own summary, so that it is the last line."""
    try:
        return (yield)
    finally:
        found = session.config.stash.get(SESSION, None)
        if found is not None:
            try:
                found.close()
            finally:
                reporter = session.config.pluginmanager.getplugin("terminalreporter")
                reporter.write_line(f"servers: {found.servers.description}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what its processes wrote."""
    report = yield
    if report.failed and PROCESSES in item.stash:
        for process in item.stash[PROCESSES].all:
            title = f"output of {process.name} (pid {process.pid}, exit code {process.returncode})"
            report.sections.append((title, process.output[-OUTPUT_SHOWN_CHARS:]))
    return report


@pytest.fixture(scope="session")
def server_session(pytestconfig: pytest.Config) -> Session:
    """The run's own part of the servers: for the other fixtures, not for tests."""
    if SESSION not in pytestconfig.stash:
        pytest.fail("no servers were sought: mark this test with pytest.mark.servers")
    return pytestconfig.stash[SESSION]


@pytest.fixture(scope="session")
def servers(server_session: Session) -> Servers:
    """The real servers of this run: ``broker_url``, ``database_url`` (an administrator's), ``description``."""
    return server_session.servers


@pytest.fixture(scope="session")
def broker_url(servers: Servers) -> str:
    """The broker of this run, shared by all its tests: keep to your `namespace`."""
    return servers.broker_url


@pytest.fixture
def fresh_flow_steps() -> Iterator[None]:
    """What the steps of `flow_steps` do, and have done, is of one test."""
    flow_steps.fresh()
    yield
    flow_steps.fresh()


@pytest.fixture
def step_queues() -> set[str]:
    """Add here the names of the step queues that a test makes (without namespace), and they go with its namespace.

    Needed only on a broker that is not ours and that cannot be asked what it has; elsewhere none is forgotten anyway.
    """
    return set()


@pytest.fixture
def namespace(server_session: Session, step_queues: set[str]) -> Iterator[str]:
    """A namespace of this test alone. Its exchanges and queues are deleted after the test."""
    name = server_session.new_namespace()
    yield name
    server_session.delete_namespace(name, step_queues)


@pytest.fixture
def database_url(server_session: Session) -> Iterator[str]:
    """A PostgreSQL database of this test alone, migrated: ``postgresql+asyncpg://…``. Dropped after the test."""
    url = server_session.create_database()
    yield url
    server_session.drop_database(url)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """An SQLite file that does not exist yet."""
    return f"sqlite+aiosqlite:///{tmp_path / 'watership.db'}"


@pytest.fixture
def processes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Processes]:
    """Start services as processes: ``processes.watership("reaper", env=…)``. All end with the test, by `kill -9`."""
    # Asked for first, so taken down last: no process is left to declare a queue again.
    for fixture in ("namespace", "database_url"):
        if fixture in request.fixturenames:
            request.getfixturevalue(fixture)
    directory = tmp_path / "processes"
    directory.mkdir()
    request.node.stash[PROCESSES] = started = Processes(directory)
    yield started
    started.end()
