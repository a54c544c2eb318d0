"""Decides from its compiled code whether a program may share a child with others, and sees whether any changed it.

What may share is listed, and all else runs alone. A program may use builtins without state. Either it imports, from
modules that are made for it, and then its attributes are their functions and methods of builtin types alone, it stores
none, and it has no class whose methods those modules could call. Or it imports nothing: then there is nothing but its
own to store attributes in. Generators with a body run alone, since they may go on when another program runs. That is
about cost, not about walls: what gets through by mistake shows in `changed`, in a known answer, in the other server
(which has other neighbours) and in audits.

Standard library only: the runner, inside the child, loads this file with builtins of its own.
"""

from __future__ import annotations

import builtins
import ctypes
import gc
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from itertools import compress, count
from opcode import opmap
from types import CodeType, ModuleType

_modules = sys.modules  # bound here: a program may replace the attribute

BUILTINS = frozenset((
    "abs", "all", "any", "bin", "bool", "bytearray", "bytes", "callable", "chr", "complex", "dict", "divmod",
    "enumerate", "filter", "float", "frozenset", "hash", "hex", "id", "int", "isinstance", "issubclass", "iter", "len",
    "list", "map", "max", "min", "next", "oct", "ord", "pow", "print", "range", "repr", "reversed", "round", "set",
    "slice", "sorted", "str", "sum", "tuple", "zip",
    "ArithmeticError", "AssertionError", "AttributeError", "Exception", "IndexError", "KeyError", "LookupError",
    "NameError", "NotImplementedError", "OverflowError", "RecursionError", "RuntimeError", "StopIteration", "TypeError",
    "UnicodeError", "ValueError", "ZeroDivisionError",
))  # fmt: skip

# What a program may use of each module; None: all that is public.
MODULES: Mapping[str, frozenset[str] | None] = {
    "__future__": frozenset(("annotations",)),
    "bisect": None,
    "cmath": None,
    "collections": frozenset(("Counter", "OrderedDict", "defaultdict", "deque")),
    "copy": frozenset(("copy", "deepcopy")),
    "functools": frozenset(("cache", "cmp_to_key", "lru_cache", "partial", "reduce")),
    "heapq": frozenset((
        "heapify", "heappop", "heappush", "heappushpop", "heapreplace", "merge", "nlargest", "nsmallest",
    )),
    "itertools": None,
    "json": frozenset(("dumps", "loads")),
    "math": None,
    "operator": frozenset((
        "add", "and_", "concat", "contains", "countOf", "eq", "floordiv", "ge", "getitem", "gt", "indexOf", "inv",
        "invert", "itemgetter", "le", "lshift", "lt", "mod", "mul", "ne", "neg", "not_", "or_", "pos", "pow", "rshift",
        "sub", "truediv", "truth", "xor",
    )),
    "re": frozenset((
        "A", "ASCII", "DOTALL", "I", "IGNORECASE", "M", "MULTILINE", "S", "VERBOSE", "X", "escape", "findall",
        "finditer", "fullmatch", "match", "search", "split", "sub", "subn",
    )),
    "string": frozenset((
        "ascii_letters", "ascii_lowercase", "ascii_uppercase", "capwords", "digits", "hexdigits", "octdigits",
        "printable", "punctuation", "whitespace",
    )),
    "typing": frozenset((
        "Any", "Callable", "Counter", "DefaultDict", "Deque", "Dict", "FrozenSet", "Iterable", "Iterator", "List",
        "Mapping", "Optional", "OrderedDict", "Sequence", "Set", "Tuple", "Union", "defaultdict", "deque",
    )),
}  # fmt: skip

_TYPES = (bool, bytearray, bytes, complex, dict, float, frozenset, int, list, range, set, slice, str, tuple)
_HARMLESS_GLOBALS = frozenset(("__annotations__", "__name__", "_"))
# Types whose attributes lead into the interpreter.
_INNER = (
    types.AsyncGeneratorType, types.BuiltinFunctionType, types.CellType, types.CodeType, types.CoroutineType,
    types.FrameType, types.FunctionType, types.GeneratorType, types.GetSetDescriptorType, types.MappingProxyType,
    types.MethodType, types.ModuleType, types.TracebackType, BaseException, type,
)  # fmt: skip
# What a class may define; none of it is called when another program runs. Not `__exit__`: it is handed classes, of
# which some, such as the runner's own, take attributes and are there for the next program.
_SPECIAL = frozenset((
    "__abs__", "__add__", "__and__", "__bool__", "__call__", "__classcell__", "__contains__", "__delitem__",
    "__doc__", "__eq__", "__firstlineno__", "__float__", "__floordiv__", "__ge__",
    "__getitem__", "__gt__", "__hash__", "__iadd__", "__init__", "__int__", "__iter__", "__le__", "__len__",
    "__lt__", "__mod__", "__module__", "__mul__", "__ne__", "__neg__", "__next__", "__or__", "__pow__",
    "__qualname__", "__radd__", "__repr__", "__rmul__", "__rsub__", "__setitem__", "__slots__",
    "__static_attributes__", "__str__", "__sub__", "__truediv__", "__xor__",
))  # fmt: skip

# Their fields read attributes that no code names: '{0.__traceback__}'.
_REACHING = frozenset(("format", "format_map"))

# Under another hash seed, at another address or another time these give, or write, another value.
_UNSTEADY = frozenset((
    "FrozenSet", "Set", "ascii", "decode", "deepcopy", "dumps", "format", "format_map", "frozenset", "fromhex", "hash",
    "id", "items", "keys", "maketrans", "mod", "print", "repr", "set", "str", "translate",
))  # fmt: skip


def _codes(*names: str) -> bytes:
    return bytes(opmap[name] for name in names if opmap.get(name, 256) < 256)  # beyond stand no real operations


def _has_any(operations: bytes, searched: bytes) -> bool:
    """Return whether any of the searched bytes is there, as fast as C can tell."""
    return len(operations.translate(None, searched)) < len(operations)


_ALONE_OPERATIONS = _codes("MATCH_CLASS", "IMPORT_STAR", "LOAD_SUPER_ATTR", "LOAD_SUPER_METHOD")
_STORES = _codes("STORE_ATTR", "DELETE_ATTR")
_OWN_OPERATIONS = _STORES + _codes("LOAD_BUILD_CLASS")
_UNSTEADY_OPERATIONS = _codes(
    "BUILD_SET", "SET_ADD", "SET_UPDATE", "FORMAT_VALUE", "FORMAT_SIMPLE", "FORMAT_WITH_SPEC", "CONVERT_VALUE",
    "LOAD_BUILD_CLASS",
)  # fmt: skip
_NO_OPERATION = 255  # stands for what this version does not have
_ATTRIBUTE, _METHOD = opmap["LOAD_ATTR"], opmap.get("LOAD_METHOD", _NO_OPERATION)
_FROM, _IMPORT, _EXTENDED = opmap["IMPORT_FROM"], opmap["IMPORT_NAME"], opmap["EXTENDED_ARG"]
# How Python 3.12 and later import a star.
_INTRINSIC, _STAR_ARGUMENT, _STAR = opmap.get("CALL_INTRINSIC_1", _NO_OPERATION), 2, "*"
_LOOKED_AT = bytes(code in (_ATTRIBUTE, _METHOD, _FROM, _IMPORT, *_STORES, _INTRINSIC) for code in range(256))
_BINARY, _REMAINDERS = opmap["BINARY_OP"], (6, 19)  # `%` and `%=`
# May write a percent sign that stands nowhere.
_WRITERS = frozenset((
    "bytearray", "bytes", "chr", "encode", "expand", "loads", "printable", "punctuation", "sub", "subn", "to_bytes",
))  # fmt: skip
_SHIFT = 1 if sys.version_info >= (3, 12) else 0  # the lowest bit of LOAD_ATTR says there whether it is a method
_GENERATORS = 0x20 | 0x80 | 0x100 | 0x200  # flags of generators, coroutines and the like


class Anatomy:
    """What the router looks at of a compiled program.

    Attributes:
        pieces: The code of the program and of all that it defines.
        names: That stand in any of them, for globals, attributes or modules.
        operations: Of all of them.
        generates: Whether there is a generator with a body.
        catches: Whether anything in it may go on after an exception.
    """

    def __init__(self, code: CodeType) -> None:
        self.pieces = pieces = [code]
        names: set[str] = set()
        operations = []
        self.generates = self.catches = False
        for piece in pieces:  # grows while it is walked
            names.update(piece.co_names)
            operations.append(piece.co_code[::2])
            if piece.co_flags & _GENERATORS and piece.co_name != "<genexpr>":
                self.generates = True
            if piece.co_exceptiontable:
                self.catches = True
            pieces += [constant for constant in piece.co_consts if type(constant) is CodeType]
        self.names = names
        self.operations = b"".join(operations)


class Router:
    """Knows the interpreter as it was before the first program.

    Args:
        names: Modules that programs may import and share; those that are not loaded count as not shared.
    """

    def __init__(self, names: Iterable[str] = MODULES) -> None:
        modules = {name: _modules[name] for name in sorted(names) if name in _modules}
        self._shared = frozenset(modules)
        self._attributes = _attributes(modules)
        # Wherever these stand, also as an attribute or an import, they are what was listed or an error.
        self._safe = (self._attributes | BUILTINS) - sys.stdlib_module_names | self._shared
        self._inner = frozenset(name for kind in _INNER for name in dir(kind)) - self._attributes
        self._unlisted = frozenset(vars(builtins)) - BUILTINS
        self._spaces = [vars(builtins), *map(vars, modules.values())]
        # The dict of a class is to be had only through what shows it.
        self._spaces += [
            gc.get_referents(vars(kind))[0] for module in modules.values() for kind in _own_classes(module)
        ]
        self._headers = list(map(_header, self._spaces))
        self._before = b"".join(self._headers)

    def shares(self, program: Anatomy) -> bool:
        """Return whether a program may run beside others."""
        if program.generates or _has_any(program.operations, _ALONE_OPERATIONS):
            return False
        if not _REACHING.isdisjoint(program.names):
            return False
        imports = _IMPORT in program.operations
        if imports and _has_any(program.operations, _OWN_OPERATIONS):
            return False
        others = program.names - self._safe
        hidden = {name for name in others if name[:2] == "__"}
        if not hidden <= (_HARMLESS_GLOBALS if imports else _HARMLESS_GLOBALS | _SPECIAL):
            return False
        if not self._unlisted.isdisjoint(others - hidden):
            return False
        if not imports and not hidden and self._inner.isdisjoint(others):
            return True
        return all(self._may(*step, imports) for piece in program.pieces for step in _named_steps(piece))

    def _may(self, operation: int, name: str, imports: bool) -> bool:
        if operation == _IMPORT:
            return name in self._shared
        if operation == _INTRINSIC:
            return name != _STAR
        if name in self._attributes:
            return True
        return not imports and name not in self._inner and name[:2] != "__"

    def is_steady(self, program: Anatomy) -> bool:
        """Return whether a program that may share gives the same whatever the hash seed, address and time.

        That holds for inputs without sets and percent signs alone, also such as are written by an escape.
        """
        if not _UNSTEADY.isdisjoint(program.names) or _has_any(program.operations, _UNSTEADY_OPERATIONS):
            return False
        constants = [constant for piece in program.pieces for constant in piece.co_consts]
        if frozenset in map(type, constants):
            return False
        if _BINARY not in program.operations:
            return True
        if _WRITERS.isdisjoint(program.names) and not any(map(_has_percent, constants)):
            return True
        return not any(_has_remainder(piece.co_code) for piece in program.pieces)

    def changed(self) -> bool:
        """Return whether the builtins, a shared module or a class of one were written to, in whatever way."""
        return b"".join(self._headers) != self._before


def _header(space: dict[str, object]) -> ctypes.Array[ctypes.c_char]:
    """Return what a dict says of itself, where it stands: its size, its place, a number that each change makes another.

    To look at the values would write to the count of references of each, and so to every page that holds one.
    """
    begin, end = object.__basicsize__, dict.__basicsize__  # first come the count of references and the type
    return (ctypes.c_char * (end - begin)).from_address(id(space) + begin)


def _named_steps(piece: CodeType) -> Iterator[tuple[int, str]]:
    """Yield the operations that read, store or import by name, and whatever else needs a look."""
    code, operations, names = piece.co_code, piece.co_code[::2], piece.co_names
    for at in compress(count(), operations.translate(_LOOKED_AT)):  # C finds the few
        operation, argument, before = operations[at], code[2 * at + 1], at - 1
        while before >= 0 and operations[before] == _EXTENDED:
            argument |= code[2 * before + 1] << 8 * (at - before)
            before -= 1
        if operation == _ATTRIBUTE:
            yield operation, names[argument >> _SHIFT]
        elif operation == _INTRINSIC:
            yield operation, _STAR if argument == _STAR_ARGUMENT else ""
        else:
            yield operation, names[argument]


def _attributes(modules: Mapping[str, ModuleType]) -> frozenset[str]:
    """Return what may stand after a dot: methods of builtin types, and what programs may use of the modules."""
    allowed = {name: _public(module) if MODULES[name] is None else MODULES[name] for name, module in modules.items()}
    found = {name for kind in _TYPES for name in dir(kind) if name[0] != "_"}
    for names in allowed.values():
        found.update(names or ())
    for module in modules.values():
        for kind in _own_classes(module):
            if kind.__name__ in ("Counter", "OrderedDict", "Match", "Pattern", "defaultdict", "deque"):
                found.update(name for name in dir(kind) if name[0] != "_")
    # The same word may lead elsewhere in another module.
    for name, module in modules.items():
        found -= {word for word in found if hasattr(module, word) and word not in (allowed[name] or ())}
    return frozenset(found)


def _public(module: ModuleType) -> frozenset[str]:
    return frozenset(name for name in vars(module) if name[0] != "_")


def _own_classes(module: ModuleType) -> list[type]:
    return [value for value in vars(module).values() if isinstance(value, type) and value.__module__ in MODULES]


def _has_remainder(code: bytes) -> bool:
    return any(code[at] == _BINARY and code[at + 1] in _REMAINDERS for at in range(0, len(code), 2))


def _has_percent(constant: object) -> bool:
    if type(constant) is str:
        return "%" in constant
    if type(constant) is tuple:
        return any(map(_has_percent, constant))
    return type(constant) is bytes
