"""What a database's error means: try again, look what came of it, or tell the user, in a sentence without a password."""

from __future__ import annotations

import enum

import sqlalchemy as sa
import sqlalchemy.exc

from watership.errors import ConfigurationError, StoreUnavailable, WatershipError


class Trouble(enum.Enum):
    """The kinds of errors that a store can do something about."""

    CONTENDED = enum.auto()  # rolled back in favour of another transaction: the same again will do
    LOST = enum.auto()  # the connection went, or was never had: whether the work was committed is unknown
    REFUSED = enum.auto()  # the server answered, and will not have us
    NOT_MIGRATED = enum.auto()  # our tables are not there, or are old
    OTHER = enum.auto()  # what was sent is at fault


# SQLSTATEs, or the classes that they begin with.
_CONTENDED = ("40001", "40P01", "55P03")
_LOST = ("08", "57P01", "57P02", "57P03", "53300")
_REFUSED = ("28", "3D000", "42501", "53", "25006", "57014", "58")
_NOT_MIGRATED = ("42P01", "42703", "3F000")

# SQLite has no codes at this level; these sentences have not changed for many years.
_SQLITE = {
    "database is locked": Trouble.CONTENDED,
    "database table is locked": Trouble.CONTENDED,
    "database schema is locked": Trouble.CONTENDED,
    "no such table: watership_": Trouble.NOT_MIGRATED,
    "no such column": Trouble.NOT_MIGRATED,
    "has no column named": Trouble.NOT_MIGRATED,
    "unable to open database file": Trouble.REFUSED,
    "file is not a database": Trouble.REFUSED,
    "attempt to write a readonly database": Trouble.REFUSED,
    "database or disk is full": Trouble.REFUSED,
    "disk I/O error": Trouble.REFUSED,
    "database disk image is malformed": Trouble.REFUSED,
}


def trouble_of(error: BaseException) -> Trouble:
    """What kind of trouble an error is that came out of SQLAlchemy or a driver."""
    if isinstance(error, sa.exc.TimeoutError):  # the pool gave no connection: another try would wait as long
        return Trouble.REFUSED
    if isinstance(error, OSError):  # with it TimeoutError and ConnectionError: drivers let them through as they are
        return Trouble.LOST
    if not isinstance(error, sa.exc.DBAPIError):
        return Trouble.OTHER
    code = getattr(error.orig, "sqlstate", None)
    if code:
        for kind, codes in (
            (Trouble.CONTENDED, _CONTENDED),
            (Trouble.LOST, _LOST),
            (Trouble.REFUSED, _REFUSED),
            (Trouble.NOT_MIGRATED, _NOT_MIGRATED),
        ):
            if code.startswith(codes):
                return kind
    if error.connection_invalidated or isinstance(error, sa.exc.InterfaceError):
        return Trouble.LOST
    if code is None:
        text = str(error.orig)
        return next((kind for words, kind in _SQLITE.items() if words in text), Trouble.OTHER)
    return Trouble.OTHER


def explained(error: BaseException, url: sa.URL) -> WatershipError | None:
    """What the user is told instead; None: the error speaks for itself."""
    kind = trouble_of(error)
    where = shown(url)
    if kind is Trouble.NOT_MIGRATED:
        return ConfigurationError(
            f"the database {where} has no Watership tables, or older ones ({_words(error)}): run "
            f"`watership db upgrade`, or `await storage.create_tables()` where a test or a script makes its own database"
        )
    if kind is Trouble.CONTENDED:
        return StoreUnavailable(f"the database {where} stayed locked by others: {_words(error)}")
    if kind is Trouble.REFUSED:
        return StoreUnavailable(f"the database {where} refuses us: {_words(error)}")
    if kind is Trouble.LOST:
        return StoreUnavailable(f"the database {where} cannot be reached: {_words(error)}")
    return None


def shown(url: sa.URL) -> str:
    """A database's URL as people may see it: without the password, and without a query, which may hold one."""
    return url.set(password=None, query={}).render_as_string(hide_password=True)


def _words(error: BaseException) -> str:
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig is not None else error
    text = str(cause).strip() or type(cause).__name__
    # SQLAlchemy puts "<class '...'>: " before a driver's words.
    return text.split(">: ", 1)[-1].splitlines()[0]
