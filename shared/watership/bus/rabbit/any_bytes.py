"""Reads AMQP's own fields whatever bytes they are, so that no message can cost the link that it arrives on.

Whoever may publish to the broker chooses a message's id, type, headers and times, and its routing key, byte by byte;
the broker passes them on. pamqp raises for text that is not UTF-8, and for a time that no calendar has, and it raises in
the library's reader, which ends the connection. The message is not acknowledged, so the next connection gets it again:
for ever, and with it everything else is silent. So the message has to be read. What of it cannot be is replaced, and
then it is judged, refused and dead-lettered like any other.

pamqp finds its decoders in two tables by the type of a field, and offers no other hook: aiormq makes its frame reader
itself, and calls pamqp's functions by their module. So these entries are replaced, for the whole process. What pamqp can
read is read as before; only where it would have ended a connection is there now a value.
"""

from __future__ import annotations

import datetime as dt
import logging
import struct
from typing import Any

from pamqp import decode

log = logging.getLogger(__name__)


def install() -> None:
    """Replaces pamqp's decoders. Again is harmless."""
    decode.METHODS.update({"shortstr": short_string, "timestamp": timestamp, "table": properties_table})
    decode.TABLE_MAPPING.update({b"T": timestamp, b"F": table})


def short_string(value: bytes) -> tuple[int, str]:
    """A text of up to 255 bytes."""
    end = 1 + value[0] if value else 1
    return end, text(value[1:end])


def timestamp(value: bytes) -> tuple[int, dt.datetime | None]:
    """A time; None for one beyond the year 9999."""
    try:
        return decode.timestamp(value)
    except (ValueError, OverflowError, OSError):
        return 8, None


def table(value: bytes) -> tuple[int, dict[str, Any]]:
    """A table within a table. pamqp's own reads the names itself, so it cannot be asked first."""
    (length,) = struct.unpack_from(">I", value)
    found: dict[str, Any] = {}
    position, end = 4, 4 + length
    if end > len(value):
        raise ValueError(f"a table of {length} bytes, of which {len(value) - 4} are there")  # not worth a look at each
    while position < end:
        consumed, name = short_string(value[position : position + 256])
        position += consumed
        consumed, found[name] = decode.embedded_value(value[position:end])
        position += consumed
    return end, found


def properties_table(value: bytes) -> tuple[int, dict[str, Any]]:
    """A message's headers. Those that cannot be read at all, such as tables a thousand deep, count as none."""
    try:
        return table(value)
    except (ValueError, ArithmeticError, RecursionError, struct.error) as error:
        log.warning("the headers of a message cannot be read (%s): it is taken without them", error)
        return 4 + int.from_bytes(value[:4], "big"), {}


def text(raw: bytes) -> str:
    """What is no UTF-8 becomes question marks: never longer in bytes, so that an answer can carry it back."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode(errors="replace").replace("\ufffd", "?")
