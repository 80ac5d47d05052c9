"""The README's Python as programs that a type checker can read."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator

FENCE = re.compile(r"^```(?:python|py)[^\n]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)

NAMED = re.compile(r"# (\w+\.py)$", re.MULTILINE)


def programs(readme: str) -> dict[str, str]:
    """Its programs, by the name of a file for each.

    A block that begins with an import (or a docstring and an import) is a program of its own. Any other goes on with
    the program before it, in a function of its own: so it may await, and make a name anew. A first line like
    ``# orders.py`` names its file, for the blocks that import it.
    """
    found: list[str] = []
    names: list[str] = []
    for number, block in enumerate(blocks(readme), start=1):
        if not found or _begins_anew(block):
            found.append(_as_module(block, number))
            named = NAMED.match(block)
            names.append(named[1] if named else f"readme_{len(found)}.py")
        else:
            found[-1] += _as_function(block, number)
    return dict(zip(names, found, strict=True))


def blocks(readme: str) -> Iterator[str]:
    """What stands in fences of Python, without the indentation of a list that they stand in."""
    for match in FENCE.finditer(textwrap.dedent(readme)):
        yield match[1]


def _begins_anew(block: str) -> bool:
    body = _parse(block).body
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    return bool(body) and isinstance(body[0], ast.Import | ast.ImportFrom)


def _as_module(block: str, number: int) -> str:
    """What awaits at the top level, and all that follows it, goes into a function: a module cannot await."""
    for statement in _parse(block).body:
        if _awaits(statement):
            lines = block.splitlines(keepends=True)
            before, after = lines[: statement.lineno - 1], lines[statement.lineno - 1 :]
            return "".join(before) + _as_function("".join(after), number)
    return block


def _as_function(block: str, number: int) -> str:
    return f"\n\nasync def _block_{number}() -> None:\n" + textwrap.indent(block, "    ")


def _awaits(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return False
    return any(isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith) for node in ast.walk(statement))


def _parse(block: str) -> ast.Module:
    # The parser takes an await at the top level as it is; only the compiler would refuse it.
    return ast.parse(block)
