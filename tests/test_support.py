"""The tests' own tools: a run without servers stops and says what to do, and processes are read, killed and ended."""

from __future__ import annotations

import signal

import pytest

from tests.support import servers
from tests.support.endpoints import POSTGRESQL, RABBITMQ, Endpoint, Unavailable
from tests.support.processes import Processes
from tests.support.servers import open_session

# Nothing listens on port 1, and binding it takes an administrator.
NOWHERE = {
    RABBITMQ: Endpoint("amqp://guest:guest@127.0.0.1:1/", "nowhere"),
    POSTGRESQL: Endpoint("postgresql+asyncpg://postgres@127.0.0.1:1/postgres", "nowhere"),
}


@pytest.fixture
def no_servers(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A host that has nothing: no variables, no servers, no Docker, and no leave to install."""
    for variable in servers.VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(servers, "HOST", NOWHERE)
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    monkeypatch.setenv("WATERSHIP_TEST_APT", "0")
    return monkeypatch


@pytest.mark.usefixtures("no_servers")
def test_without_servers_the_run_stops_and_names_the_four_ways() -> None:
    with pytest.raises(Unavailable) as stop:
        open_session(say=lambda _: None)
    message = str(stop.value)
    for way in ("WATERSHIP_TEST_BROKER_URL", "127.0.0.1:5672", "Docker", "apt-get"):
        assert way in message
    assert message.count("nothing listens there") == 2
    assert "no engine answers" in message
    assert "WATERSHIP_TEST_APT=0 forbids it" in message


def test_a_server_that_was_named_is_the_one_or_none(no_servers: pytest.MonkeyPatch) -> None:
    no_servers.setenv("WATERSHIP_TEST_BROKER_URL", NOWHERE[RABBITMQ].url)
    with pytest.raises(Unavailable, match=r"WATERSHIP_TEST_BROKER_URL is set.*nothing listens there"):
        open_session(say=lambda _: None)


def test_a_process_is_read_as_it_writes(processes: Processes) -> None:
    process = processes.python("-c", "print('ready on 5672', flush=True); __import__('signal').pause()")
    assert process.wait_for_line(r"ready on (\d+)")[1] == "5672"
    assert process.returncode is None
    process.kill9()
    assert process.returncode == -signal.SIGKILL
    assert process.output_path.read_text() == process.output == "ready on 5672\n"


def test_waiting_for_a_line_ends_with_the_process(processes: Processes) -> None:
    process = processes.python("-c", "print('something else')")
    with pytest.raises(AssertionError, match=r"(?s)ended without a line like 'ready'.*something else"):
        process.wait_for_line("ready")


def test_waiting_for_a_line_has_an_end(processes: Processes) -> None:
    process = processes.python("-c", "__import__('signal').pause()")
    with pytest.raises(AssertionError, match=r"ran for 0\.05 s without a line"):
        process.wait_for_line("ready", timeout_s=0.05)


async def test_stop_lets_a_process_finish(processes: Processes) -> None:
    drains = "import signal, sys; signal.signal(15, lambda *_: sys.exit(7)); print('ready', flush=True); signal.pause()"
    process = processes.python("-c", drains)
    await process.line("ready")
    assert process.stop() == 7


def test_stop_kills_what_does_not_listen(processes: Processes) -> None:
    deaf = "import signal; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
    process = processes.python("-c", deaf)
    process.wait_for_line("ready")
    assert process.stop(timeout_s=0.05) == -signal.SIGKILL
