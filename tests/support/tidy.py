"""The house rules that a program can check. Each is a function of source files, and returns what offends it."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("shared/", "orchestrator/", "worker/")

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 400
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "base", "manager", "misc"}

# A library that only one module may import, and that module: a file, or a package of that name. A change of library
# then changes one place.
ONE_IMPORTER = {
    "aio_pika": "shared/watership/bus/rabbit",
    "aiormq": "shared/watership/bus/rabbit",
    "pamqp": "shared/watership/bus/rabbit",
    "orjson": "shared/watership/codec",
    "aiobreaker": "shared/watership/adapters/circuit_breaker",
    "di": "shared/watership/adapters/di",
    "dishka": "shared/watership/adapters/dishka",
    "dependency_injector": "shared/watership/adapters/dependency_injector",
}
# The same, where the place is free to choose.
ANY_ONE_IMPORTER = ("jsonschema_rs", "asyncpg")

# What a pure machine may know: values, and ways to write them down.
PURE_STDLIB = {
    "__future__", "abc", "bisect", "collections", "copy", "dataclasses", "enum", "functools", "hashlib", "heapq",
    "itertools", "json", "math", "numbers", "operator", "re", "string", "textwrap", "types", "typing", "zlib",
}  # fmt: skip
MACHINE = ("shared/watership/machine/", "shared/watership/errors.py", "shared/watership/values.py")
# What the machine shares with the rest, and which is held to the same rules: the errors and their stable codes, and what a value is.
MACHINE_MAY_IMPORT = {"watership.errors", "watership.values"}
IMPURE_CALLS = {"now", "utcnow", "today", "time", "time_ns", "monotonic", "perf_counter", "random", "randint", "uuid4"}
IMPURE_OWNERS = {"datetime", "date", "time", "random", "secrets", "uuid", "os"}

# Written so that this file does not offend the rule that it states.
LEFT_UNDONE = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:wo" + r"rk|ro" + r"ot|ho" + r"me|Us" + r"ers)/")
LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)|(?:src|href)=\"([^\"]+)\"")
FENCE = re.compile(r"^(```|~~~).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Source:
    """A file of the repository: its path from the root, with slashes, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """The file as Python."""
        return ast.parse(self.text, self.path)

    @property
    def in_product(self) -> bool:
        """Whether it is shipped."""
        return self.path.startswith(PRODUCT)


def repository() -> Iterator[Source]:
    """Every text file that git tracks or would track: a new file is held to the rules before it is committed."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in sorted(filter(None, set(names))):
        path = ROOT / name
        if not path.is_file():  # deleted, and not yet committed
            continue
        try:
            yield Source(name, path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue


def python(sources: Iterable[Source]) -> list[Source]:
    """The Python files among them."""
    return [source for source in sources if source.path.endswith(".py")]


def product(sources: Iterable[Source]) -> list[Source]:
    """The Python files that are shipped."""
    return [source for source in python(sources) if source.in_product]


def long_functions(sources: Iterable[Source]) -> list[str]:
    """Functions that do not fit a screen and a half."""
    return [
        f"{source.path}:{node.lineno} {node.name}: {lines} lines"
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]


def long_files(sources: Iterable[Source]) -> list[str]:
    """Files that are about more than one thing. A migration is as long as its schema."""
    return [
        f"{source.path}: {lines} lines"
        for source in sources
        if "/migrations/" not in source.path and (lines := len(source.text.splitlines())) > FILE_LINES_MAX
    ]


def empty_names(sources: Iterable[Source]) -> list[str]:
    """Names that say nothing: of files, and of folders."""
    return [
        source.path
        for source in sources
        if EMPTY_NAMES & {part.removesuffix(".py").strip("_") for part in source.path.split("/")}
    ]


def strange_importers(sources: Iterable[Source]) -> list[str]:
    """A library that is imported where it should not be, or in two places."""
    importers: dict[str, set[str]] = {}
    for source in sources:
        for module in imports(source):
            importers.setdefault(module.split(".")[0], set()).add(source.path)
    offences = [
        f"{path} imports {library}: only {home} may"
        for library, home in ONE_IMPORTER.items()
        for path in sorted(importers.get(library, set()))
        if not path.startswith((f"{home}.py", f"{home}/"))
    ]
    for library in ANY_ONE_IMPORTER:
        paths = sorted(importers.get(library, set()))
        if len(paths) > 1:
            offences.append(f"{library} has {len(paths)} importers: {', '.join(paths)}")
    return offences


def imports(source: Source) -> Iterator[str]:
    """The modules that a file imports, wherever in the file."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module


def modules_without_docstring(sources: Iterable[Source]) -> list[str]:
    """Modules that do not say what they are."""
    return [source.path for source in sources if ast.get_docstring(source.tree) is None]


def faces_without_docstring(names: Mapping[str, object]) -> list[str]:
    """Classes and functions of a public face that do not say what they do. A docstring that is inherited is not theirs."""
    return [name for name, value in names.items() if (isinstance(value, type) or callable(value)) and not _says(value)]


def _says(value: object) -> bool:
    text = (vars(value).get("__doc__") if isinstance(value, type) else value.__doc__) or ""
    # A dataclass without a docstring is given its own signature for one.
    return bool(text.strip()) and not text.startswith(f"{getattr(value, '__name__', '')}(")


def prints(sources: Iterable[Source]) -> list[str]:
    """A library that writes on its user's screen. The command line, its commands and the demo are there to do so."""
    return [
        f"{source.path}:{node.lineno}"
        for source in sources
        if not re.search(r"/(cli|commands)\.py$|/(commands|demo)/", source.path)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def in_machine(sources: Iterable[Source]) -> list[Source]:
    """The files of the pure machine, and those that it shares with the rest."""
    return [source for source in sources if source.path.startswith(MACHINE)]


def clocks_and_dice(sources: Iterable[Source]) -> list[str]:
    """Calls that ask the world instead of the arguments: `datetime.now()`, `time.time()`, `random.random()`."""
    return [
        f"{source.path}:{node.lineno} {ast.unparse(node.func)}"
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if node.func.attr in IMPURE_CALLS and IMPURE_OWNERS & set(ast.unparse(node.func.value).split("."))
    ]


def impure_imports(sources: Iterable[Source]) -> list[str]:
    """Imports of a pure module that are neither pure standard library nor the machine itself."""
    return [
        f"{source.path} imports {module}"
        for source in sources
        for module in imports(source)
        if module.split(".")[0] not in PURE_STDLIB
        and module not in MACHINE_MAY_IMPORT
        and not f"{module}.".startswith("watership.machine.")
    ]


def left_undone(sources: Iterable[Source]) -> list[str]:
    """Marks of unfinished work: what is to be done stands in an issue."""
    return _lines(sources, LEFT_UNDONE)


def machine_paths(sources: Iterable[Source]) -> list[str]:
    """Paths of the machine that somebody worked on."""
    return _lines(sources, MACHINE_PATH)


def _lines(sources: Iterable[Source], pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{source.path}:{number} {line.strip()[:100]}"
        for source in sources
        for number, line in enumerate(source.text.splitlines(), start=1)
        if pattern.search(line)
    ]


def broken_links(sources: Iterable[Source], root: Path = ROOT) -> list[str]:
    """Links of Markdown files to local files that are not there. Examples of Markdown, in fences, do not count."""
    offences = []
    for source in sources:
        if not source.path.endswith(".md"):
            continue
        for found in LINK.finditer(FENCE.sub("", source.text)):
            target = (found[1] or found[2]).split("#")[0]
            if target and not re.match(r"[a-z][a-z0-9+.-]*:", target):
                start = root if target.startswith("/") else (root / source.path).parent
                if not (start / target.lstrip("/")).resolve().exists():
                    offences.append(f"{source.path}: {target}")
    return offences


def version_mismatch(pyproject_version: str, changelog: str) -> list[str]:
    """The newest version of the changelog, if it is not the one that would be built."""
    versions = re.findall(r"^## \[(\d[^\]]*)\]", changelog, re.MULTILINE)
    newest = versions[0] if versions else "none"
    return [] if newest == pyproject_version else [f"pyproject.toml has {pyproject_version}, CHANGELOG.md has {newest}"]
