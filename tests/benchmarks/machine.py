"""What the figures were taken on: enough to judge them, and nothing that tells whose machine it is."""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path

import psutil

from tests.support.servers import Session


def describe(session: Session) -> dict[str, str]:
    """The machine and the versions of what ran on it."""
    servers = re.sub(r" \([^)]*\)", "", session.servers.description)
    return {
        "CPU": f"{os.cpu_count()} × {_processor()}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "Python": platform.python_version(),
        "servers": servers,
    }


def _processor() -> str:
    with Path("/proc/cpuinfo").open() as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def installed_peers(python: Path) -> dict[str, str]:
    """The versions of the peers, from the folder that they are installed in."""
    wanted = {
        "python_cqrs": "python-cqrs",
        "dbos": "DBOS",
        "celery": "Celery",
        "aio_pika": "aio-pika",
        "restate_sdk": "Restate SDK",
    }
    found = {}
    for folder in python.parent.parent.glob("lib/python3*/site-packages/*.dist-info"):
        name, _, version = folder.name.removesuffix(".dist-info").rpartition("-")
        if name in wanted:
            found[wanted[name]] = version
    server = python.parent.parent / "restate" / "node_modules" / "@restatedev" / "restate-server" / "package.json"
    if server.exists():
        found["Restate"] = json.loads(server.read_text())["version"]
    return found
