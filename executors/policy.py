"""The language of proposed programs: which Python may become a task.

This is not a wall. Guards at the level of the language fail about once a year; the sandbox holds whatever a program
does. The policy keeps tasks to what a reader can work out from the text: no clocks, randomness, files, object
addresses or introspection.

RestrictedPython decides first: its compiler pass walks the whole program and refuses what it does not know. The
transformed program is never run; the original is. So decisions that RestrictedPython leaves to the guards of a host
are made here, in the open:

* allowed beyond it: annotated and augmented assignment, ``nonlocal``, ``match``, variables with a leading underscore,
  ``self._attribute``, the special methods of `METHODS`;
* allowed as it has them: functions, classes, generators, comprehensions, f-strings, ``with``, ``print`` (whose text
  goes nowhere, so it is no part of a task);
* refused beyond it: modules outside `MODULES` and modules reached through those, a module as a value (its name may
  only stand before a dot) and changes to it, builtins of `BUILTINS`, attribute names of `ATTRIBUTES`, also in a class
  pattern, ``str.format`` with anything but plain fields of a literal;
* refused as it has them: ``async``, ``except*``, metaclasses, star imports, double-underscore names.

A program that does not parse is no matter of policy: the sandbox reports its `SyntaxError`.
"""

from __future__ import annotations

import ast
import string
import symtable
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from RestrictedPython import RestrictingNodeTransformer

MAX_SOURCE = 32_768

MODULES = frozenset({
    "__future__", "abc", "bisect", "cmath", "collections", "collections.abc", "copy", "dataclasses", "decimal", "enum",
    "fractions", "functools", "heapq", "itertools", "math", "numbers", "operator", "re", "statistics", "string",
    "typing",
})  # fmt: skip

_OUTSIDE, _HIDDEN_CODE, _BY_TEXT = "talks to the outside", "runs code that is not in the text", "reaches names by text"
_PROCESS, _SITE = "differs from process to process", "is no part of the language"
_INSPECTS, _LEADS_OUT = "looks into objects", "leads out of the allowed modules"

BUILTINS = {
    **dict.fromkeys(("open", "input", "help", "breakpoint", "exit", "quit"), _OUTSIDE),
    **dict.fromkeys(("eval", "exec", "compile", "__import__"), _HIDDEN_CODE),
    **dict.fromkeys(("globals", "locals", "vars", "dir", "getattr", "setattr", "delattr", "hasattr"), _BY_TEXT),
    **dict.fromkeys(("id", "hash"), _PROCESS),
    **dict.fromkeys(("copyright", "credits", "license"), _SITE),
}

ATTRIBUTES = {
    **dict.fromkeys(("attrgetter", "methodcaller", "update_wrapper"), _BY_TEXT),
    **dict.fromkeys(("get_type_hints", "ForwardRef", "make_dataclass"), _HIDDEN_CODE),
    **dict.fromkeys(("Formatter", "Template", "format_map", "mro", "with_traceback"), _INSPECTS),
    **dict.fromkeys(("sys", "os", "builtins", "posix", "gc", "inspect", "ctypes", "importlib", "modules"), _LEADS_OUT),
}

_OPERATORS = (
    "add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift",
)  # fmt: skip
METHODS = frozenset(
    f"__{name}__"
    for name in (
        *(prefix + name for prefix in ("", "r", "i") for name in _OPERATORS),
        "init", "new", "post_init", "call", "enter", "exit", "copy", "deepcopy", "missing", "length_hint",
        "repr", "str", "format", "bytes", "bool", "int", "float", "complex", "index", "hash",
        "len", "iter", "next", "reversed", "contains", "getitem", "setitem", "delitem",
        "eq", "ne", "lt", "le", "gt", "ge", "neg", "pos", "abs", "invert", "round", "trunc", "floor", "ceil",
        "divmod", "rdivmod",
    )
)  # fmt: skip
_READABLE = METHODS | {"__name__", "__slots__", "__match_args__", "__future__"}
_FRAMES = ("tb_", "f_", "gi_", "co_", "cr_", "ag_")
_POSING = frozenset(("register", "runtime_checkable", "ABCMeta"))  # make a class answer for objects of other classes


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a program is outside the language.

    Attributes:
        name: The rule: ``source``, ``import``, ``builtin``, ``name``, ``attribute``, ``format`` or ``language``.
        message: What was refused, in a few words.
        line: Where, if anywhere.
    """

    name: str
    message: str
    line: int | None = None


def refusal(program: str) -> Refusal | None:
    """Return the first reason to refuse ``program``, or None. Nothing of it is run, and no source makes this raise.

    >>> refusal("def f(x): return x + 1")
    >>> refusal("import os")
    Refusal(name='import', message="module 'os' is not allowed", line=1)
    """
    if len(program) > MAX_SOURCE:
        return Refusal("source", f"over {MAX_SOURCE} characters")
    try:
        with warnings.catch_warnings():  # an invalid escape such as '\d' warns; it is still a program
            warnings.simplefilter("ignore")
            tree = ast.parse(program)
            names = symtable.symtable(program, "<program>", "exec")
            # Before RestrictedPython, which changes the tree.
            found = list(_builtins(names, tree))
            more = [*_Modules(tree).refusals(), *_match_arguments(tree)]
            _Language(found).visit(tree)
            found += more
    except (SyntaxError, ValueError):  # no program at all: a NUL, a lone surrogate
        return None
    except (RecursionError, MemoryError, OverflowError) as error:
        return Refusal("source", f"too deep or too large to read: {type(error).__name__}")
    except Exception as error:  # RestrictedPython stumbles over some sources; what it cannot judge does not pass
        return Refusal("language", f"cannot be judged: {type(error).__name__}")
    return min(found, key=lambda refused: refused.line or 0, default=None)


def _builtins(table: symtable.SymbolTable, tree: ast.Module) -> Iterator[Refusal]:
    """Yield a refusal for every forbidden builtin that some scope reads; a parameter called ``input`` is not one."""
    for name in dict.fromkeys(_builtins_read(table)):  # each looked for once: scopes and lines are many
        line = next((n.lineno for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == name), None)
        yield Refusal("builtin", f"{name!r} {BUILTINS[name]}", line)


def _builtins_read(table: symtable.SymbolTable) -> Iterator[str]:
    for symbol in table.get_symbols():
        name = symbol.get_name()
        if name not in BUILTINS:
            continue
        # In a module or class body, a name that is also assigned there may still mean the builtin.
        scoped = table.get_type() == "function" and not symbol.is_global()
        if not scoped and (symbol.is_referenced() or symbol.is_assigned()):
            yield name
    for child in table.get_children():
        yield from _builtins_read(child)


class _Language(RestrictingNodeTransformer):  # type: ignore[misc]
    """RestrictedPython's pass with the decisions of this module's first lines; collects refusals."""

    def __init__(self, found: list[Refusal]) -> None:
        super().__init__()
        self._found = found

    def error(self, node: Any, info: str) -> None:
        self._refuse(node, "language", info)

    def warn(self, node: Any, info: str) -> None:
        """Say nothing: RestrictedPython warns of what it refuses anyway."""

    def _refuse(self, node: Any, name: str, message: str) -> None:
        self._found.append(Refusal(name, message, getattr(node, "lineno", None)))

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Refuse what RestrictedPython does not know, but leave it: it stumbles over gaps in its own tree."""
        self.not_allowed(node)
        return node

    visit_Await = generic_visit  # noqa: N815

    def check_name(self, node: Any, name: str | None, allow_magic_methods: bool = False) -> None:
        if name is not None and name.startswith("__") and name not in _READABLE:
            self._refuse(node, "name", f"{name!r} starts with two underscores")

    def visit_Import(self, node: ast.Import) -> ast.AST:  # noqa: N802
        for alias in node.names:
            self._allowed_module(node, alias.name)
            self.check_name(node, alias.asname)
        return self._walk(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:  # noqa: N802
        module = None if node.level else self._allowed_module(node, node.module or "")
        if node.level:
            self._refuse(node, "import", "relative imports have nothing to be relative to")
        for alias in node.names:
            self.check_name(node, alias.asname)
            if alias.name == "*":
                self._refuse(node, "import", "star imports are not allowed")
            elif module is not None:
                message = _bad_member(module, alias.name)
                if message:
                    self._refuse(node, "import", message)
        return self._walk(node)

    def _allowed_module(self, node: ast.AST, name: str) -> ModuleType | None:
        if name in MODULES:
            return import_module(name)  # of the standard library, chosen above
        self._refuse(node, "import", f"module {name!r} is not allowed")
        return None

    def _check_attribute(self, node: Any, name: str, of_self: bool = False) -> None:
        private = name.startswith("_") and name not in _READABLE
        if private and not (of_self and not name.startswith("__")):
            self._refuse(node, "attribute", f"attribute {name!r} is private")
        elif name in ATTRIBUTES:
            self._refuse(node, "attribute", f"attribute {name!r} {ATTRIBUTES[name]}")
        elif name.startswith(_FRAMES):
            self._refuse(node, "attribute", f"attribute {name!r} looks into frames")

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:  # noqa: N802
        # `self` is a name like any other, so it opens only what a class calls its own.
        self._check_attribute(node, node.attr, isinstance(node.value, ast.Name) and node.value.id == "self")
        if node.attr == "format" and not _is_plain_format(node.value):
            self._refuse(node, "format", "str.format needs a literal with plain fields; f-strings are allowed")
        return self._walk(node)

    def visit_MatchClass(self, node: ast.MatchClass) -> ast.AST:  # noqa: N802
        for name in node.kwd_attrs:
            self._check_attribute(node, name)
            if name == "format":
                self._refuse(node, "format", "str.format needs a literal with plain fields; f-strings are allowed")
        return self._walk(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:  # noqa: N802
        if isinstance(node.func, ast.Name) and node.func.id == "type" and len(node.args) + len(node.keywords) > 1:
            self._refuse(node, "builtin", "'type' with several arguments makes classes that are not in the text")
        return self._walk(node)

    def _walk(self, node: ast.AST) -> ast.AST:
        walked: ast.AST = self.node_contents_visit(node)
        return walked

    def _walk_pattern(self, node: Any) -> ast.AST:
        self.check_name(node, getattr(node, "name", None))
        return self._walk(node)

    visit_AnnAssign = visit_AugAssign = visit_Nonlocal = visit_Subscript = _walk  # noqa: N815
    visit_Match = visit_match_case = visit_MatchValue = visit_MatchSingleton = _walk  # noqa: N815
    visit_MatchSequence = visit_MatchOr = _walk  # noqa: N815
    visit_MatchAs = visit_MatchStar = visit_MatchMapping = _walk_pattern  # noqa: N815

    def visit_Name(self, node: ast.Name) -> ast.AST:  # noqa: N802
        self.check_name(node, node.id)
        return self._walk(node)


class _Modules:
    """Finds what a program does with imported modules beyond reading their members.

    A name counts as a module wherever it is imported, except in functions that plainly have a variable of that name.
    """

    def __init__(self, tree: ast.Module) -> None:
        self._tree = tree
        self._modules: dict[str, list[ModuleType]] = {}  # all that a name may stand for
        self._members: set[str] = set()
        self._fixed: set[str] = set()  # names that a function may share with the module
        self._known_owners: dict[int, list[ModuleType]] = {}  # or each dot of a long chain would ask all before it
        self._found: list[Refusal] = []

    def refusals(self) -> list[Refusal]:
        """Return a refusal for every module that gets out, every bad member and every change."""
        top = set(map(id, self._tree.body))
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = self._bind(node)
                if id(node) not in top:
                    self._fixed.update(names)
            elif isinstance(node, ast.Global | ast.Nonlocal):
                self._fixed.update(node.names)
        if self._modules or self._members:
            self._visit(self._tree, frozenset())
        return self._found

    def _bind(self, node: ast.Import | ast.ImportFrom) -> list[str]:
        bound = []
        for alias in node.names:
            name = alias.asname or alias.name.partition(".")[0]
            bound.append(name)
            if isinstance(node, ast.ImportFrom):
                origin = node.module or ""
                self._members.add(name)
                member = None if origin not in MODULES else getattr(import_module(origin), alias.name, None)
            else:
                full = alias.name if alias.asname else name
                member = import_module(full) if full in MODULES else None  # others are refused where they stand
            if isinstance(member, ModuleType) and member not in self._modules.setdefault(name, []):
                self._modules[name].append(member)
        return bound

    def _visit(self, node: ast.AST, local: frozenset[str]) -> None:
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            body = node.body if isinstance(node.body, list) else [node.body]
            inside = set(map(id, body))
            inner = local | (_variables(node.args, body) - self._fixed)
            for child in ast.iter_child_nodes(node):
                self._visit(child, inner if id(child) in inside else local)
            return None
        if isinstance(node, ast.Name) and node.id in self._modules and node.id not in local:
            self._refuse(node, f"module {node.id!r} may only stand before a dot")
        if isinstance(node, ast.Attribute):
            if not isinstance(node.ctx, ast.Load) and self._is_imported(node.value, local):
                self._refuse(node, "imported modules and their members cannot be changed")
            owners = self._owners(node.value, local)
            if owners:
                messages = [message for owner in owners if (message := _bad_member(owner, node.attr))]
                if messages:
                    self._refuse(node, messages[0])
                elif any(isinstance(getattr(owner, node.attr, None), ModuleType) for owner in owners):
                    self._refuse(node, f"module {node.attr!r} may only stand before a dot")
                return self._past(node.value, local)
        for child in ast.iter_child_nodes(node):
            self._visit(child, local)
        return None

    def _past(self, owner: ast.expr, local: frozenset[str]) -> None:
        """Check the members on the way to a module, which stands before a dot."""
        while isinstance(owner, ast.Attribute):
            for module in self._owners(owner.value, local):
                message = _bad_member(module, owner.attr)
                if message:
                    self._refuse(owner, message)
            owner = owner.value

    def _owners(self, node: ast.expr, local: frozenset[str]) -> list[ModuleType]:
        if isinstance(node, ast.Name):
            return [] if node.id in local else self._modules.get(node.id, [])
        if isinstance(node, ast.Attribute):
            if id(node) not in self._known_owners:
                members = [getattr(owner, node.attr, None) for owner in self._owners(node.value, local)]
                self._known_owners[id(node)] = [member for member in members if isinstance(member, ModuleType)]
            return self._known_owners[id(node)]
        return []

    def _is_imported(self, node: ast.expr, local: frozenset[str]) -> bool:
        while isinstance(node, ast.Attribute):
            node = node.value
        return isinstance(node, ast.Name) and node.id not in local and node.id in {*self._modules, *self._members}

    def _refuse(self, node: ast.expr, message: str) -> None:
        self._found.append(Refusal("import", message, node.lineno))


def _bad_member(module: ModuleType, name: str) -> str:
    """Return why a member of a module is refused, or nothing."""
    member = getattr(module, name, None)
    if isinstance(member, ModuleType) and f"{module.__name__}.{name}" not in MODULES:
        return f"module {name!r} is not allowed"
    if name.startswith("_") or name in ATTRIBUTES:
        return (
            "" if name in _READABLE and module.__name__ == "__future__" else f"{module.__name__}.{name} is not allowed"
        )
    return ""


def _variables(arguments: ast.arguments, body: list[Any]) -> set[str]:
    """Return the parameters of a function and the names that its own body assigns, nested scopes left out."""
    every = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg)
    found = {argument.arg for argument in every if argument is not None}
    waiting = list(body)
    scopes = (
        ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp,
        ast.GeneratorExp,
    )  # fmt: skip
    while waiting:
        node = waiting.pop()
        if isinstance(node, scopes):
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        waiting += ast.iter_child_nodes(node)
    return found


def _match_arguments(tree: ast.Module) -> Iterator[Refusal]:
    """Yield a refusal where a class pattern may read attributes that are not in the text."""
    literal = set()
    posing = by_position = None
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and len(node.targets) == 1:
            names = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
            if all(isinstance(name, ast.Constant) and _is_ordinary(name.value) for name in names):
                literal.add(id(node.targets[0]))
        if isinstance(node, ast.MatchClass):
            by_position = by_position or (node if node.patterns else None)
        named = {getattr(node, field, None) for field in ("id", "attr", "name")}
        named.update(getattr(node, "kwd_attrs", ()))
        posing = posing or (None if named.isdisjoint(_POSING) else node)
    if posing and by_position:
        message = "a class that answers for others cannot be matched by position"
        yield Refusal("attribute", message, by_position.lineno)
    for node in ast.walk(tree):
        named_so = "__match_args__" in (getattr(node, "id", None), getattr(node, "attr", None))
        if named_so and id(node) not in literal:
            yield Refusal(
                "attribute", "__match_args__ must be a tuple of ordinary names", getattr(node, "lineno", None)
            )


def _is_ordinary(name: object) -> bool:
    return isinstance(name, str) and not name.startswith(("_", *_FRAMES)) and name not in ATTRIBUTES


def _is_plain_format(owner: ast.expr) -> bool:
    """Return whether this is a text literal whose fields are numbers or names, without attributes or items."""
    if not (isinstance(owner, ast.Constant) and isinstance(owner.value, str)):
        return False
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(owner.value) if field]
    except ValueError:  # it fails when it runs, and that is an error like any other
        return True
    return all(field.isidentifier() or field.isdigit() for field in fields)
