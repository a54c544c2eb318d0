"""What is shown and written: text of others made inert, and files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path


def inert(text: str, keep: str = "") -> str:
    r"""Return text with every character that does not print as an escape, all but those in ``keep``.

    A program chooses its messages. On a terminal they must not move the cursor, change its title or hide text, which
    control characters, escape sequences and marks of writing direction do.

    >>> inert("\x1b[31mred\n"), inert("a\tb\u202ec\ud800", keep="\t")
    ('\\x1b[31mred\\n', 'a\tb\\u202ec\\ud800')
    """
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii") for c in text)


def write_whole(path: Path, text: str) -> None:
    """Write a file that is the old one or the new one, whenever the process dies and however full the disk is.

    What is no ordinary file (``/dev/stdout``, a pipe) is simply written to.

    Raises:
        OSError: It cannot be written; the error names the file.
    """
    ordinary = path.is_file() or not path.exists()
    target = path.with_name(path.name + ".part") if ordinary and not path.is_symlink() else path
    try:
        with target.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if ordinary:
                os.fsync(file.fileno())
        if target != path:
            target.replace(path)
    except OSError as error:
        if target != path:
            target.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
