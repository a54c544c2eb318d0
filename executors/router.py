"""Decides from its compiled code what a program may do with others, and sees whether any of them changed the child.

A program that only computes cannot reach what its neighbours use: it names no attribute with underscores, imports
nothing but a few modules without state, and changes no attribute where it has imported any. Everything else runs in a
child of its own. That is about cost, not about walls: what gets through by mistake shows in `changed`, in a known
answer, in the other server (which has other neighbours) and in audits.

Standard library only: the runner, inside the child, loads this file with builtins of its own.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterable, Mapping
from opcode import opmap
from types import CodeType, ModuleType

_STORES = (opmap["STORE_ATTR"], opmap["DELETE_ATTR"])
_IMPORT, _EXTENDED_ARG = opmap["IMPORT_NAME"], opmap["EXTENDED_ARG"]
_modules = sys.modules  # bound here: a program may replace the attribute

# Modules without state that one program could change for another.
SHARED_MODULES = frozenset((
    "__future__", "bisect", "cmath", "collections", "collections.abc", "copy", "datetime", "fractions", "functools",
    "heapq", "itertools", "json", "math", "operator", "re", "statistics", "string", "textwrap", "typing",
))  # fmt: skip

# Names with underscores that a program may define or read: they lead nowhere.
_HARMLESS = frozenset((
    "_", "__abs__", "__add__", "__and__", "__annotations__", "__bool__", "__call__", "__classcell__", "__contains__",
    "__delitem__", "__doc__", "__enter__", "__eq__", "__exit__", "__float__", "__floordiv__", "__ge__", "__getitem__",
    "__gt__", "__hash__", "__iadd__", "__init__", "__int__", "__invert__", "__iter__", "__le__", "__len__", "__lt__",
    "__mod__", "__module__", "__mul__", "__name__", "__ne__", "__neg__", "__next__", "__or__", "__pos__", "__pow__",
    "__qualname__", "__radd__", "__repr__", "__reversed__", "__rmul__", "__rsub__", "__setitem__", "__slots__",
    "__str__", "__sub__", "__truediv__", "__xor__",
))  # fmt: skip

# Names that reach further than their arguments, or change what was not made by the program itself.
_FAR_REACHING = frozenset((
    "getattr", "setattr", "delattr", "vars", "globals", "locals", "eval", "exec", "compile", "open", "breakpoint",
    "memoryview", "sys", "os", "builtins", "modules", "gc", "obj", "mro", "with_traceback",
    "attrgetter", "methodcaller", "Formatter", "get_field", "get_value",
    "register", "wraps", "update_wrapper", "total_ordering", "dispatch_table", "purge",
    "final", "no_type_check", "no_type_check_decorator", "runtime_checkable", "override", "overload",
    "clear_overloads", "dataclass_transform",
    "gi_frame", "gi_code", "gi_yieldfrom", "cr_frame", "cr_code", "cr_await", "cr_origin", "ag_frame", "ag_code",
    "ag_await", "f_back", "f_globals", "f_builtins", "f_locals", "f_code", "f_trace", "tb_frame", "tb_next",
))  # fmt: skip

# What gives another value under another hash seed, at other addresses or at another time, or writes such a value.
_UNSTEADY_NAMES = frozenset((
    "set", "frozenset", "hash", "id", "object", "repr", "str", "ascii", "format", "format_map", "print", "dumps",
    "time", "today", "now", "utcnow", "datetime", "date", "keys", "items", "Set", "MutableSet", "KeysView", "ItemsView",
))  # fmt: skip
_UNSTEADY_OPERATIONS = tuple(
    opmap[name]
    for name in ("BUILD_SET", "SET_ADD", "SET_UPDATE", "FORMAT_VALUE", "FORMAT_SIMPLE", "FORMAT_WITH_SPEC",
                 "CONVERT_VALUE", "LOAD_BUILD_CLASS")
    if name in opmap
)  # fmt: skip

_State = tuple[tuple[int, ...], ...]


class Router:
    """Knows the interpreter as it was before the first program.

    Args:
        names: Modules that programs may import and share; those that are not loaded count as not shared.
    """

    def __init__(self, names: Iterable[str] = SHARED_MODULES) -> None:
        modules = {name: _modules[name] for name in sorted(names) if name in _modules}
        self._shared = frozenset(modules)
        self._suspect = _FAR_REACHING | _mutable_names(modules)
        self._spaces: list[Mapping[str, object]] = [vars(builtins), *(vars(module) for module in modules.values())]
        self._spaces += [vars(kind) for module in modules.values() for kind in _own_classes(module)]
        self._before = self._state()

    def shares(self, code: CodeType) -> bool:
        """Return whether a program may run beside others."""
        imports = stores = False
        pieces = [code]
        for piece in pieces:  # grows while it is walked
            if not self._suspect.isdisjoint(piece.co_names):
                return False
            if any(name[0] == "_" and name not in _HARMLESS for name in piece.co_names):
                return False
            if not _plain_constants(piece.co_consts, pieces):
                return False
            operations = piece.co_code[::2]
            stores = stores or any(store in operations for store in _STORES)
            if _IMPORT in operations:
                imports = True
                if not self._shared.issuperset(_imported(piece)):
                    return False
        return not (imports and stores)

    def is_steady(self, code: CodeType) -> bool:
        """Return whether a program that may share plainly gives the same whatever the hash seed, address and time."""
        pieces = [code]
        for piece in pieces:
            if not _UNSTEADY_NAMES.isdisjoint(piece.co_names):
                return False
            operations = piece.co_code[::2]
            if any(operation in operations for operation in _UNSTEADY_OPERATIONS):
                return False
            for constant in piece.co_consts:
                if type(constant) is CodeType:
                    pieces.append(constant)
                elif type(constant) is frozenset or (type(constant) is str and "%" in constant):
                    return False
        return True

    def changed(self) -> bool:
        """Return whether any name of the builtins, of a shared module or of its classes means something else now."""
        return self._state() != self._before

    def _state(self) -> _State:
        return tuple(tuple(map(id, space.values())) for space in self._spaces)


def _plain_constants(constants: Iterable[object], pieces: list[CodeType]) -> bool:
    """Return whether no constant names anything hidden; add code objects to ``pieces``."""
    for constant in constants:
        kind = type(constant)
        if kind is str:
            if "__" in constant and constant != "__main__":  # type: ignore[operator]
                return False
        elif kind is CodeType:
            pieces.append(constant)  # type: ignore[arg-type]
        elif (kind is tuple or kind is frozenset) and not _plain_constants(constant, pieces):  # type: ignore[arg-type]
            return False
    return True


def _imported(code: CodeType) -> list[str]:
    """Return the modules that a piece of code names in imports; an unreadable one as an empty text."""
    found, operations = [], code.co_code
    for at in range(0, len(operations), 2):
        if operations[at] == _IMPORT:
            far = at >= 2 and operations[at - 2] == _EXTENDED_ARG
            found.append("" if far else code.co_names[operations[at + 1]])
    return found


def _mutable_names(modules: dict[str, ModuleType]) -> frozenset[str]:
    """Return the public names under which the modules keep other modules, or containers that can be changed."""
    found = set()
    for module in modules.values():
        for space in (vars(module), *(vars(kind) for kind in _own_classes(module))):
            for name, value in space.items():
                foreign = type(value) is ModuleType and value.__name__ not in modules
                if name[0] != "_" and (foreign or type(value) in (list, dict, set, bytearray)):
                    found.add(name)
    return frozenset(found)


def _own_classes(module: ModuleType) -> list[type]:
    return [value for value in vars(module).values() if isinstance(value, type) and value.__module__ in SHARED_MODULES]
