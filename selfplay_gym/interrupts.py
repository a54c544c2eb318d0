"""Ctrl-C that does not get lost.

Python raises `KeyboardInterrupt` wherever the program is. Where that is a destructor, as it may be while a library is
imported, it is printed and dropped, and the program goes on. So it is remembered too, and asked for after long imports.
"""

from __future__ import annotations

import signal
from types import FrameType

_asked = False


def remember() -> None:
    """From now on, remember a Ctrl-C beside raising it; one that the user's shell has switched off stays so."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def check() -> None:
    """Return unless there was a Ctrl-C.

    Raises:
        KeyboardInterrupt: There was, and what it raised got lost.
    """
    if _asked:
        raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _asked
    _asked = True
    raise KeyboardInterrupt
