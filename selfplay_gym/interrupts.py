"""Ctrl-C that does not get lost.

Python raises `KeyboardInterrupt` wherever the program is. Where that is a destructor, as it may be while a library is
imported, it is printed and dropped, and the program goes on. So it is remembered too, and asked for after long imports.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_asked: list[int] = []


@contextmanager
def remembered() -> Iterator[None]:
    """Remember a Ctrl-C beside raising it, until the block ends; where the shell has switched it off it stays off."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _asked.clear()


def check() -> None:
    """Return unless there was a Ctrl-C.

    Raises:
        KeyboardInterrupt: There was, and what it raised got lost.
    """
    if _asked:
        raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> None:
    _asked.append(number)
    raise KeyboardInterrupt
