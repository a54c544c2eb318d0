"""Every error a caller may want to catch, as one tree.

A program that raises, hangs or lies is *data* (`Execution.status`), never one of these.
"""


class SelfPlayError(Exception):
    """Base of every error this package raises on purpose; the command line prints it as one line."""


class InvalidConfig(SelfPlayError, ValueError):
    """A setting has an unknown name or an impossible value."""


class UnknownId(SelfPlayError, LookupError):
    """No family, suite, executor or check is registered under that name."""


class InvalidData(SelfPlayError, ValueError):
    """A data, completions or archive file does not hold what it should."""


class MissingData(InvalidData):
    """A data file, or the folder or hub that it would come from, is not there."""


class RunFolderError(SelfPlayError):
    """A run folder is in use, holds another run's state, or holds nothing to resume."""


class ExecutorError(SelfPlayError, RuntimeError):
    """*Our* sandbox broke: it could not start or gave no answer. Never the program's fault."""


class EndpointError(SelfPlayError, RuntimeError):
    """An endpoint is down, too slow, refuses, or answers with what is no completion."""
