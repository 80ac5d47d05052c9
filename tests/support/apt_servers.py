"""RabbitMQ, PostgreSQL and MariaDB from the packages of Debian or Ubuntu, as root. Runs in the keeper's process.

Nothing is started as a service, and a server of the host is never touched: ours listen on ports of their own on
127.0.0.1, with their data in a temporary directory, and end with the test run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.support.endpoints import MARIADB, POSTGRESQL, RABBITMQ, TITLES, Endpoint, Unavailable, wait_until_answering

PACKAGES = {RABBITMQ: "rabbitmq-server", POSTGRESQL: "postgresql", MARIADB: "mariadb-server"}
# Debian asks this program before it starts a service; 101 means "not allowed".
POLICY = Path("/usr/sbin/policy-rc.d")
RABBITMQ_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
MARIADB_SERVER = Path("/usr/sbin/mariadbd")
INSTALL_WITHIN_S = 600
START_WITHIN_S = 90
END_WITHIN_S = 20


@contextlib.contextmanager
def running(wanted: Sequence[str], say: Callable[[str], None]) -> Iterator[dict[str, Endpoint]]:
    """Install what is missing and start a private server for each that is wanted; end them and remove their data."""
    refusal = why_not()
    if refusal:
        raise Unavailable(refusal)
    missing = [PACKAGES[server] for server in wanted if _program(server) is None]
    names = " and ".join(TITLES[server] for server in wanted)
    if missing:
        say(f"servers: installing {' and '.join(missing)} with apt-get, then starting {names} on private ports")
        _install(missing)
        missing = [PACKAGES[server] for server in wanted if _program(server) is None]
        if missing:
            raise Unavailable(f"apt-get installed {missing[0]}, but its server is not where it should be")
    else:
        say(f"servers: starting {names} from the installed packages, on private ports")
    with contextlib.ExitStack() as stack:
        home = Path(tempfile.mkdtemp(prefix="watership-servers-"))
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        home.chmod(0o711)  # the servers run as users of their own, and only pass through
        starters = {RABBITMQ: _start_rabbitmq, POSTGRESQL: _start_postgresql, MARIADB: _start_mariadb}
        yield {server: starters[server](home, stack) for server in wanted}


def why_not() -> str:
    """Why this way is closed on this host; empty if it is open."""
    if os.environ.get("WATERSHIP_TEST_APT") == "0":
        return "WATERSHIP_TEST_APT=0 forbids it"
    if shutil.which("apt-get") is None:
        return "this is not Debian or Ubuntu"
    return "" if os.geteuid() == 0 else "not root"


def _program(server: str) -> Path | None:
    if server in {RABBITMQ, MARIADB}:
        program = RABBITMQ_SERVER if server == RABBITMQ else MARIADB_SERVER
        return program if program.exists() else None
    found = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    return max(found, key=lambda path: int(path.parts[-3]), default=None)


def _install(packages: Sequence[str]) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    with _no_service_starts():
        done = _run(install, environment)
        if done.returncode != 0:  # package lists are often stale, and in images mostly absent
            _run(["apt-get", "update"], environment)
            done = _run(install, environment)
    if done.returncode != 0:
        raise Unavailable(f"apt-get could not install {' and '.join(packages)}: {_last_line(done.stdout)}")
    if shutil.which("systemctl"):  # nor may they start when the host next boots
        services = [f"{package}.service" for package in packages]
        _run(["systemctl", "--no-reload", "disable", *services], environment)


@contextlib.contextmanager
def _no_service_starts() -> Iterator[None]:
    """Forbid packages to start services, and restore what was there: a file, a link or nothing."""
    aside = POLICY.with_name("policy-rc.d.before-watership-tests")
    was_there = POLICY.exists() or POLICY.is_symlink()
    if was_there:
        POLICY.rename(aside)
    try:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
        yield
    finally:
        POLICY.unlink(missing_ok=True)
        if was_there:
            aside.rename(POLICY)


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """A private server, made ready and not yet running: how it is run, and where it will listen.

    ``ending`` asks it to stop now, in order.
    """

    server: str
    command: Sequence[str]
    environment: Mapping[str, str]
    data: Path
    ending: signal.Signals
    url: str
    port: int

    def start(self) -> subprocess.Popen[bytes]:
        """Starts it, in a session of its own; it may be started again after it ended. Who starts it ends it."""
        with (self.data / "output.log").open("ab") as output:
            return subprocess.Popen(
                self.command,
                cwd=self.data,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, process: subprocess.Popen[bytes]) -> Endpoint:
        """Waits until it answers. Raises Unavailable with the last thing that it said."""
        try:
            ended = lambda: process.poll() is not None  # noqa: E731
            wait_until_answering(self.server, self.url, timeout_s=START_WITHIN_S, ended=ended)
        except Unavailable as why:
            said = (self.data / "output.log").read_text(errors="replace")
            raise Unavailable(f"{why}: {_last_line(said)}") from why
        return Endpoint(self.url, f"started for this run, 127.0.0.1:{self.port}", shared=False)


def is_installed(server: str) -> bool:
    """Whether its program is on this host."""
    return _program(server) is not None


def prepare_postgresql(home: Path, name: str = "postgresql", options: Sequence[str] = ()) -> Program:
    """A cluster of its own in ``home / name``. ``options`` are further settings, as ``max_wal_size=64MB``."""
    program = _program(POSTGRESQL)
    assert program is not None
    data, port = _directory(home, name, user="postgres"), _free_port()
    initdb = [str(program.with_name("initdb")), "--pgdata", str(data / "data"), "--username=postgres", "--auth=trust"]
    done = _run([*_as("postgres"), *initdb, "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"], os.environ)
    if done.returncode != 0:
        raise Unavailable(f"initdb failed: {_last_line(done.stdout)}")
    settings = ["max_connections=200", "listen_addresses=127.0.0.1", f"unix_socket_directories={data}", *options]
    flags = [flag for setting in settings for flag in ("-c", setting)]
    command = [*_as("postgres"), str(program), "-D", str(data / "data"), "-p", str(port), *flags]
    url = f"postgresql+asyncpg://postgres@127.0.0.1:{port}/postgres"
    # Postgres takes SIGINT as "now, but in order"; SIGTERM would wait for clients.
    return Program(POSTGRESQL, command, dict(os.environ), data, signal.SIGINT, url, port)


def prepare_mariadb(home: Path) -> Program:
    """A database system of its own in ``home / "mariadb"``."""
    data, port = _directory(home, "mariadb", user="mysql"), _free_port()
    install = ["mariadb-install-db", "--no-defaults", f"--datadir={data / 'data'}", "--skip-test-db"]
    done = _run([*_as("mysql"), *install, "--auth-root-authentication-method=normal"], os.environ)
    if done.returncode != 0:
        raise Unavailable(f"mariadb-install-db failed: {_last_line(done.stdout)}")
    options = [
        f"--datadir={data / 'data'}",
        f"--port={port}",
        "--bind-address=127.0.0.1",
        f"--socket={data / 'socket'}",
    ]
    command = [*_as("mysql"), str(MARIADB_SERVER), "--no-defaults", *options, f"--pid-file={data / 'pid'}"]
    url = f"mysql+aiomysql://root@127.0.0.1:{port}/mysql"
    return Program(MARIADB, command, dict(os.environ), data, signal.SIGTERM, url, port)


def prepare_rabbitmq(home: Path) -> tuple[Program, Program]:
    """Erlang's name server, to be started first, and the broker: a node of its own in ``home / "rabbitmq"``."""
    data, port, names_port = _directory(home, "rabbitmq", user="rabbitmq"), _free_port(), _free_port()
    (data / "rabbitmq.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{port}\n")
    (data / "enabled_plugins").write_text("[].\n")
    (data / "env.conf").touch()
    environment = {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "HOME": str(data),  # where Erlang makes its cookie: not the host's
        # Erlang's name server, too, is our own: the host's may be older, or end with the host's broker.
        "ERL_EPMD_PORT": str(names_port),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": f"watership-{port}@localhost",
        "RABBITMQ_DIST_PORT": str(_free_port()),
        "RABBITMQ_MNESIA_BASE": str(data / "data"),
        "RABBITMQ_LOG_BASE": str(data / "log"),
        "RABBITMQ_CONFIG_FILE": str(data / "rabbitmq.conf"),
        "RABBITMQ_CONF_ENV_FILE": str(data / "env.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(data / "enabled_plugins"),
        "RABBITMQ_PID_FILE": str(data / "pid"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
    }
    # Up before the broker is: else the broker starts one that nobody ends.
    epmd = [*_as("rabbitmq"), shutil.which("epmd") or "epmd", "-port", str(names_port)]
    names = Program(RABBITMQ, epmd, environment, data, signal.SIGTERM, f"epmd://127.0.0.1:{names_port}", names_port)
    url = f"amqp://guest:guest@127.0.0.1:{port}/"
    command = [*_as("rabbitmq"), str(RABBITMQ_SERVER)]
    return names, Program(RABBITMQ, command, environment, data, signal.SIGTERM, url, port)


def rabbitmqctl(broker: Program, *arguments: str) -> str:
    """Runs the broker's command line on a private broker; what it wrote. Raises Unavailable when it failed."""
    command = [*_as("rabbitmq"), str(RABBITMQ_SERVER.with_name("rabbitmqctl")), "--quiet", *arguments]
    done = _run(command, broker.environment)
    if done.returncode != 0:
        raise Unavailable(f"rabbitmqctl {' '.join(arguments)}: {_last_line(done.stdout)}")
    return done.stdout


def _start_postgresql(home: Path, stack: contextlib.ExitStack) -> Endpoint:
    return _started(prepare_postgresql(home), stack)


def _start_mariadb(home: Path, stack: contextlib.ExitStack) -> Endpoint:
    return _started(prepare_mariadb(home), stack)


def _start_rabbitmq(home: Path, stack: contextlib.ExitStack) -> Endpoint:
    names, broker = prepare_rabbitmq(home)
    process = names.start()
    stack.callback(end, process, names.ending)
    wait_for_name_server(names, process)
    return _started(broker, stack)


def _started(program: Program, stack: contextlib.ExitStack) -> Endpoint:
    process = program.start()
    stack.callback(end, process, program.ending)
    return program.wait(process)


def wait_for_name_server(names: Program, process: subprocess.Popen[bytes]) -> None:
    """Waits until Erlang's epmd listens. Raises Unavailable."""
    deadline = time.monotonic() + START_WITHIN_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", names.port), timeout=1).close()
        except OSError as why:
            if process.poll() is not None or time.monotonic() > deadline:
                raise Unavailable("epmd, Erlang's name server, did not start") from why
            time.sleep(0.02)
        else:
            return


def end(process: subprocess.Popen[bytes], ending: signal.Signals) -> None:
    """In order if it can, and its whole session in any case: RabbitMQ has helpers of its own."""
    process.send_signal(ending)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_WITHIN_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _directory(home: Path, name: str, *, user: str) -> Path:
    path = home / name
    path.mkdir(mode=0o700)
    shutil.chown(path, user, user)
    return path


def _as(user: str) -> list[str]:
    """Both servers refuse to run as root. Unlike su and runuser, setpriv becomes the command: signals reach it."""
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--"]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _run(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=environment,
        cwd="/",  # a directory that every user may be in
        check=False,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=INSTALL_WITHIN_S,
    )


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]
