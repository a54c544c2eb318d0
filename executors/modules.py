"""What programs find in a server: the modules it loads before it walls itself in, and how it warms up.

There is no file system to load anything else from. Runs in the server alone. Standard library only.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib.util
import marshal
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# What programs can import: there is no file system to load anything else from. A light server has little to copy at
# each fork; `sandbox.is_light` picks the programs that need no more.
LIGHT = frozenset((
    "__future__", "abc", "bisect", "collections", "collections.abc", "contextlib", "copy", "enum", "functools", "heapq",
    "itertools", "keyword", "math", "operator", "re", "reprlib", "string", "sys", "time", "types", "typing",
))  # fmt: skip
PRELOADED = (
    "__future__", "abc", "array", "ast", "base64", "binascii", "bisect", "calendar", "cmath", "collections",
    "collections.abc", "contextlib", "copy", "copyreg", "dataclasses", "datetime", "decimal", "enum", "fractions",
    "functools", "hashlib", "heapq", "io", "itertools", "json", "keyword", "math", "numbers", "operator", "os",
    "pprint", "queue", "random", "re", "reprlib", "signal", "statistics", "string", "struct", "sys", "textwrap",
    "threading", "time", "traceback", "types", "typing", "unicodedata", "warnings", "zlib", "_strptime",
    "encodings.ascii", "encodings.latin_1", "encodings.utf_16", "encodings.utf_8_sig", "encodings.unicode_escape",
    "encodings.hex_codec", "encodings.rot_13", "_codecs_cn", "_codecs_hk", "_codecs_iso2022", "_codecs_jp",
    "_codecs_kr", "_codecs_tw", "_multibytecodec",
)  # fmt: skip

# What a numeric server adds to a full one, from the trainer's own packages.
NUMERIC = ("numpy", "numpy.fft", "numpy.linalg", "numpy.ma", "numpy.polynomial", "numpy.random", "numpy.testing")

# What a maths server adds to a full one. Much of sympy imports other parts of it on first need, deep inside a
# comparison, and math-verify takes the ImportError for "not equal": so these parts are loaded with all they hold.
# But not `sympy.codegen`: with it sympy evaluates some sums of an answer by Python that it writes, and runs.
MATHS = ("math_verify", "antlr4.LL1Analyzer", "sympy.parsing.sympy_parser", "sympy.physics.matrices")
MATHS_WHOLE = (
    "sympy.assumptions", "sympy.calculus", "sympy.combinatorics", "sympy.concrete", "sympy.discrete",
    "sympy.functions", "sympy.geometry", "sympy.integrals", "sympy.logic", "sympy.matrices", "sympy.ntheory",
    "sympy.physics.units", "sympy.polys", "sympy.series", "sympy.sets", "sympy.simplify", "sympy.solvers",
    "sympy.tensor",
)  # fmt: skip

# What the server itself needs and a program has no use for.
HIDDEN = (
    "ctypes",
    "_ctypes",
    "ctypes._endian",
    "mmap",
    "resource",
    "selfplay_gym",
    "subprocess",
    "socket",
    "_socket",
    "select",
)

WARM_UP = """
import re, collections, functools, itertools, typing, string
class Node(collections.namedtuple("Node", "a b")):
    @property
    def total(self): return self.a + self.b
@functools.lru_cache(None)
def fibonacci(n): return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)
def numbers(n):
    for i in range(n): yield i * 2.5
def f(text, items, table=None):
    words = re.findall(r"[a-z]+", text.lower()) + sorted({w.title() for w in text.split()}, key=len, reverse=True)
    counts = collections.Counter(words)
    for a, b in itertools.combinations(items[:4], 2): counts[f"{a:>3}-{b!r}"] += a * b // 2
    try: items[99]
    except IndexError as error: counts[str(error)] += 1
    match items:
        case [first, *rest]: counts["%s %d" % (first, len(rest))] += 1
    print(sum(numbers(9)), Node(1, 2).total, fibonacci(20))
    lines = "\\n".join("{}: {}".format(k, v) for k, v in counts.most_common())
    return {"lines": lines.encode().hex(), "rows": [(i, i ** 0.5, {i}) for i in items], "back": items[::-1]}
"""

WARM_UP_FULL = """
import dataclasses, datetime, decimal
@dataclasses.dataclass(order=True)
class Point:
    x: int
    y: "int" = 0
def f(*given):
    datetime.datetime.strptime("2024-01-02", "%Y-%m-%d").strftime("%d %b")
    return [Point(1) < Point(2), str(decimal.Decimal("1.5") * 2)]
"""
_BESIDE = frozenset(("tests", "benchmarks", "hyperexpand_doc"))  # of no use to a program, or documentation

# The tables of the grammar fill as it reads: what the server has read once, no child has to learn again.
WARM_UP_MATHS = r"""
from math_verify import parse, verify
def f(*given):
    texts = (
        "\\frac{1}{2}", "3.5", "1,234", "50\\%", "2\\sqrt{3}+1", "(1, 2]", "[0,\\infty)", "\\{1,2\\}", "1,2,3", "x=3",
        "-1<x\\le 2", "x^2+2x-y_{1}", "\\text{even}", "\\left(3,\\frac{\\pi}{2}\\right)", "\\sin(2t) e^{-t/2}",
        "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}", "(-\\infty,1)\\cup(2,3]", "\\log_{10} 2", "5\\text{ cm}",
        "30^\\circ", "\\binom{5}{2}", "4!", "a\\cdot 10^{-3}", "|x|", "2+3i", "\\sqrt[3]{2}", "f(x)=x+1",
        "12\\frac{1}{2}",
    )
    parsed = [parse("\\boxed{" + text + "}", parsing_timeout=None) for text in texts]
    return [verify(a, b, timeout_seconds=None) for a, b in zip(parsed, parsed[1:] + parsed[:1])]
"""


def load_child_side(literals_file: str, light: bool) -> Any:
    """Load the runner and the literals module with builtins of their own, out of reach of what programs change."""
    private = dict(vars(builtins))
    if light:  # values are only written there, never read; the true module would cost a megabyte
        sys.modules["ast"] = ModuleType("ast")
    for name, file in (
        ("selfplay_gym.literals", literals_file),
        ("selfplay_gym.executors.router", __file__.replace("modules.py", "router.py")),
        ("selfplay_gym.executors.arguments", __file__.replace("modules.py", "arguments.py")),
        ("selfplay_gym.executors.runner", __file__.replace("modules.py", "runner.py")),
    ):
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        code = spec.loader.get_code(name)  # type: ignore[attr-defined]
        module = ModuleType(name)
        module.__dict__["__builtins__"] = private
        sys.modules[name] = module
        exec(code, module.__dict__)
    if light:
        del sys.modules["ast"]
    return sys.modules["selfplay_gym.executors.runner"]


def preload(size: str, packages: str) -> None:
    """Import all that programs may import, in a form that costs a fork little.

    Args:
        size: ``light``, ``full``, ``numeric`` or ``maths``.
        packages: Folder of what the last two add; nothing where it is not installed.
    """
    light = size == "light"
    os.register_at_fork = lambda **hooks: None  # `random` would seed itself anew in every child
    sys.modules["_hashlib"] = None  # type: ignore[assignment]  # OpenSSL costs megabytes; hashlib has its own code
    hashes = ("_md5", "_sha1", "_sha256", "_sha512", "_sha2", "_sha3", "_blake2")
    for name in sorted(LIGHT) if light else (*hashes, *PRELOADED):
        try:
            import_module(name)
        except ImportError:  # named otherwise in this version
            sys.modules.pop(name, None)
    if not light:
        # It would tidy up after threads, of which there are none, in every child.
        vars(sys.modules["threading"])["_after_fork"] = lambda: None
        sys.meta_path.append(_TextEncodings())
    for cache in ("_cache", "_cache2"):
        if hasattr(sys.modules["re"], cache):
            setattr(sys.modules["re"], cache, _ByType())
    if packages:
        sys.path.append(packages)
        for name in NUMERIC if size == "numeric" else _maths():
            with contextlib.suppress(ImportError):
                import_module(name)
        sys.path.remove(packages)
        generators = sys.modules.get("numpy.random.bit_generator")
        if hasattr(generators, "randbits"):  # would ask the kernel, also where a seed is given; the kernel refuses
            vars(generators)["randbits"] = sys.modules["random"].Random().getrandbits


def _maths() -> Iterator[str]:
    """Yield the modules of a maths server, once their packages can be found."""
    import pkgutil  # not above: the other servers have no use for it

    yield from MATHS
    for whole in MATHS_WHOLE:
        yield whole
        if whole in sys.modules:
            found = pkgutil.walk_packages(sys.modules[whole].__path__, f"{whole}.")
            yield from (each.name for each in found if not _BESIDE.intersection(each.name.split(".")))


class _ByType(dict[tuple[object, ...], object]):
    """The patterns that `re` remembers, told apart by the type of their flags too.

    Else flags that are refused, such as 2.0, would find what a neighbour left for 2.
    """

    def __getitem__(self, key: tuple[object, ...]) -> object:
        return super().__getitem__((*key, type(key[-1])))

    def __setitem__(self, key: tuple[object, ...], pattern: object) -> None:
        super().__setitem__((*key, type(key[-1])), pattern)

    def pop(self, key: tuple[object, ...], default: object = None) -> object:
        """As `dict.pop`."""
        return super().pop((*key, type(key[-1])), default)


class _TextEncodings:
    """Imports the modules of `encodings` from memory: as modules they would be four megabytes to copy at each fork."""

    def __init__(self) -> None:
        import zlib  # not above: each C module is more to copy, and a light server has no use for this one

        self._decompress = zlib.decompress
        folder = os.path.dirname(sys.modules["encodings"].__file__ or "")  # noqa: PTH120
        names = [entry.removesuffix(".py") for entry in os.listdir(folder) if entry.endswith(".py")]  # noqa: PTH208
        self._code: dict[str, bytes] = {}
        for name in (f"encodings.{name}" for name in names if name != "__init__"):
            spec = importlib.util.find_spec(name)
            if name not in sys.modules and spec is not None:
                code = spec.loader.get_code(name)  # type: ignore[union-attr]
                self._code[name] = zlib.compress(marshal.dumps(code))

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """As `importlib` asks it."""
        return ModuleSpec(name, self) if name in self._code else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave that to `importlib`."""

    def exec_module(self, module: ModuleType) -> None:
        """As `importlib` asks it."""
        exec(marshal.loads(self._decompress(self._code[module.__name__])), module.__dict__)  # noqa: S302 - our own


def forget_modules() -> None:
    """Leave programs only what is preloaded, and no way to look for more."""
    for name in list(sys.modules):
        if name.partition(".")[0] in HIDDEN or name in HIDDEN:
            del sys.modules[name]
    vars(sys.modules["__main__"]).clear()
    sys.path[:] = []
    sys.path_importer_cache.clear()
    sys.argv[:] = [""]
    sys.orig_argv[:] = []
    os.environ.clear()
