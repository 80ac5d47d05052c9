"""The barrier's two statements on their way to the driver, straight: through the cursor of the session's own connection.

By way of SQLAlchemy's execution, each cost as much CPU again as the way to the database and back; and every handler behind a
barrier pays for two of them. It is the same connection and the same transaction, and errors are SQLAlchemy's; what is left
out is what listens to statements and to their errors, such as ``echo``. It must never know what a row means.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Dialect


@dataclasses.dataclass(frozen=True, slots=True)
class _Compiled:
    """A statement as a driver takes it. ``names``: of its arguments in their order; None: the driver takes them by name."""

    text: str
    names: tuple[str, ...] | None
    fixed: dict[str, Any]
    made_for: dict[str, Callable[[Any], Any]]  # what the driver does not take as it is

    def arguments(self, values: Mapping[str, Any]) -> Any:
        """All arguments, the fixed ones among them."""
        whole = {**self.fixed, **values}
        for name, make in self.made_for.items():
            whole[name] = make(whole[name])
        if self.names is None:
            return {name: whole[name] for name in self.fixed}
        return tuple([whole[name] for name in self.names])


@functools.lru_cache(maxsize=128)
def _compiled(statement: sa.Insert | sa.Update, dialect: Dialect) -> _Compiled:
    compiled: Any = statement.compile(dialect=dialect)
    makers = {name: bound.type.dialect_impl(dialect).bind_processor(dialect) for name, bound in compiled.binds.items()}
    made_for = {name: make for name, make in makers.items() if make is not None}
    names = tuple(compiled.positiontup) if compiled.positional else None
    return _Compiled(str(compiled), names, dict(compiled.params), made_for)


def run_straight(connection: Connection, statement: sa.Insert | sa.Update, values: Mapping[str, Any]) -> int:
    """Runs a statement that gives no rows, in the connection's transaction; how many rows it wrote.

    Raises what SQLAlchemy would raise.
    """
    if connection.get_execution_options().get("schema_translate_map"):  # which is SQLAlchemy's to follow
        return connection.execute(statement, values).rowcount
    dialect = connection.dialect
    compiled = _compiled(statement, dialect)
    arguments = compiled.arguments(values)
    cursor = None
    try:
        cursor = connection.connection.cursor()
        cursor.execute(compiled.text, arguments)
        return int(cursor.rowcount)
    except dialect.loaded_dbapi.Error as error:
        if dialect.is_disconnect(error, connection.connection, cursor):
            connection.exec_driver_sql(compiled.text, arguments)  # fails as well, and tells the pool of it
        raise sa.exc.DBAPIError.instance(
            compiled.text,
            arguments,
            error,
            dialect.loaded_dbapi.Error,
            hide_parameters=connection.engine.hide_parameters,
            dialect=dialect,
        ) from error
    except BaseException:
        # Cancelled, say, in the middle of it: what the server made of it, nobody knows, and nobody else must be given the
        # connection. After a BEGIN that nobody waited for, the next one's COMMIT would only release a savepoint.
        connection.invalidate()
        raise
    finally:
        if cursor is not None:
            with contextlib.suppress(Exception):  # one whose connection is gone
                cursor.close()
