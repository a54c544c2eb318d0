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


def load_child_side(literals_file: str, light: bool) -> Any:
    """Load the runner and the literals module with builtins of their own, out of reach of what programs change."""
    private = dict(vars(builtins))
    if light:  # values are only written there, never read; the true module would cost a megabyte
        sys.modules["ast"] = ModuleType("ast")
    for name, file in (
        ("selfplay_gym.literals", literals_file),
        ("selfplay_gym.executors.router", __file__.replace("modules.py", "router.py")),
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


def preload(light: bool, packages: str) -> None:
    """Import all that programs may import, in a form that costs a fork little.

    Args:
        light: Only what a light server holds.
        packages: Folder of numpy; nothing where programs do not get it.
    """
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
        for name in NUMERIC:
            with contextlib.suppress(ImportError):
                import_module(name)
        sys.path.remove(packages)
        generators = sys.modules.get("numpy.random.bit_generator")
        if hasattr(generators, "randbits"):  # would ask the kernel, also where a seed is given; the kernel refuses
            vars(generators)["randbits"] = sys.modules["random"].Random().getrandbits


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
