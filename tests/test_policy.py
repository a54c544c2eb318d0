"""Which Python may become a task."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_gym.executors import policy
from selfplay_gym.executors.policy import MAX_SOURCE, refusal

ALLOWED = [
    "def f(x): return x + 1",
    "def f(x: list[int], *, k: int = 2, **rest) -> int:\n    total: int = 0\n    for i in x: total += i * k\n"
    "    return total",
    "def f(x):\n    x[0] += 1\n    a, *b = x\n    del x[0]\n    return [y for y in b if (z := y) > 1], {a: z}",
    "def f(n):\n    def g():\n        nonlocal n\n        n += 1\n    g()\n    return n",
    "total = 0\ndef f(x):\n    global total\n    total += x\n    return total",
    "def f(n):\n    for i in range(n):\n        yield i",
    "class A:\n    kind: str = 'a'\n    def __init__(self, x): self._x = x\n"
    "    def __eq__(self, o): return self._x == o.x\n    @property\n    def x(self): return self._x\n"
    "class B(A):\n    def __init__(self): super().__init__(3); self._sys = 1",
    "def f(x):\n    match x:\n        case [first, *_]: return first\n        case {'k': v, **rest}: return v, rest\n"
    "        case int(n) | float(n): return n\n        case _: return None",
    "def f(x): print(f'{x!r:>{3}} {x:.2f}'); return '{} {a:>3}'.format(x, a=1)",
    "def f(x):\n    try:\n        raise ValueError('no') from None\n    except (ValueError, KeyError) as error:\n"
    "        return str(error)\n    finally:\n        pass",
    "import math, re, itertools as it\nfrom collections import defaultdict, deque\nfrom collections import abc\n"
    "import collections.abc\nfrom functools import lru_cache\n@lru_cache(None)\n"
    "def f(x): return math.sqrt(x), re.findall('a', 'b')",
    "from dataclasses import dataclass, field\n@dataclass(order=True)\nclass P:\n    x: int = field(default=3)",
    "from __future__ import annotations\nfrom typing import Optional\ndef f(x: Optional[int]): return type(x).__name__",
    "def f(input, id, hash): return input + id + hash",
    "def f(_x): return [_ for _ in _x]",
    "f = lambda s, *a: s.join(a)",
    "import string, copy\ndef f(string):\n    copy = string.upper()\n    return string + copy",
    "import collections.abc\nfrom decimal import getcontext\ngetcontext().prec = 9\n"
    "def f(x): return isinstance(x, collections.abc.Sequence)",
    "class P:\n    __match_args__ = ('x', 'y')\n    def __init__(self, x, y): self.x = x; self.y = y\n"
    "def f(a):\n    match P(a, 1):\n        case P(x, y=1): return x",
]

REFUSED = [
    ("import os", "import"),
    ("import os.path", "import"),
    ("import random", "import"),
    ("import time", "import"),
    ("import datetime", "import"),
    ("import uuid", "import"),
    ("from os import path", "import"),
    ("from math import *", "import"),
    ("from . import a", "import"),
    ("from statistics import random", "import"),
    ("import statistics\nx = statistics.random.random()", "import"),
    ("import re\nx = re.enum.sys.modules", "attribute"),
    ("import collections as c\nx = c._sys", "attribute"),
    ("from operator import attrgetter", "import"),
    ("import operator\nx = operator.methodcaller('a')", "attribute"),
    ("x = open('a')", "builtin"),
    ("x = open", "builtin"),
    ("open = 3\nx = open", "builtin"),
    ("class A:\n    id = id", "builtin"),
    ("def f(): return (lambda: eval)()", "builtin"),
    ("def f(): return __import__('os')", "builtin"),
    ("def f(): return [input() for _ in '12']", "builtin"),
    ("def f(x): return getattr(x, 'a')", "builtin"),
    ("def f(x): return id(x)", "builtin"),
    ("def f(x): return hash(x)", "builtin"),
    ("def f(): return globals()", "builtin"),
    ("def f(): return type('A', (), {})", "builtin"),
    ("x = __builtins__", "name"),
    ("def f(__x): return 1", "name"),
    ("def __getattr__(n): return 1", "name"),
    ("class A:\n    def __del__(self): pass", "name"),
    ("class A:\n    def __class__(self): pass", "name"),
    ("def f(x):\n    match x:\n        case __y: return 1", "name"),
    ("def f(x):\n    try: pass\n    except E as __y: pass", "name"),
    ("x = ().__class__.__base__", "attribute"),
    ("def f(): return f.__globals__", "attribute"),
    ("def f(g): return g.gi_frame", "attribute"),
    ("def f(e): return e.__traceback__.tb_frame", "attribute"),
    ("def f(x): return x._secret", "attribute"),
    ("def f(x): return x.mro()", "attribute"),
    ("def f(x): return '{0.__class__}'.format(x)", "format"),
    ("def f(x): return '{0[a]}'.format(x)", "format"),
    ("def f(x, s): return s.format(x)", "format"),
    ("def f(x): return '{a}'.format_map(x)", "attribute"),
    ("def f(): pass\nmatch f:\n    case object(__builtins__=b): pass", "attribute"),
    ("def f(x):\n    match x:\n        case object(gi_frame=b): pass", "attribute"),
    ("def f(x):\n    match x:\n        case object(attrgetter=b): pass", "attribute"),
    ("def f(x):\n    match x:\n        case str(format=b): pass", "format"),
    ("class A:\n    __match_args__ = '__glo' + 'bals__',", "attribute"),
    ("class A: pass\nA.__match_args__ = ('__globals__',)", "attribute"),
    ("class A:\n    __match_args__ = ('__globals__',)", "attribute"),
    (
        "import abc\nclass A(abc.ABC): gi_frame = 1\nA.register(type(0))\n"
        "def f(x):\n    match x:\n        case A(b): pass",
        "attribute",
    ),
    ("def f(self): return self.attrgetter('__globals__')", "attribute"),
    ("def f(self): return self.sys", "attribute"),
    ("def f(self): return self.gi_frame", "attribute"),
    ("def f(self): return self.Formatter().vformat('', (), {})", "attribute"),
    ("def f(self): return self.__globals__", "attribute"),
    ("import operator\nself = operator", "import"),
    ("import dataclasses\nself = dataclasses\nself = self.sys", "import"),
    ("import collections as self\nx = self._sys", "import"),
    ("import statistics\nm = statistics\nx = m.random.Random(3)", "import"),
    ("import re\nm = re\nx = m.copyreg", "import"),
    ("import re\nx = re.copyreg", "import"),
    ("import re\nx = re.enum.bltns", "import"),
    ("from re import enum\nx = enum.bltns", "import"),
    ("from collections import abc\nx = abc", "import"),
    ("import collections.abc\nx = collections.abc", "import"),
    ("def f(): return statistics.random\nimport statistics", "import"),
    ("import statistics as m\nimport math as m\ndef f(): return m.random", "import"),
    ("import math\ndef f(): return [math]", "import"),
    ("import math\ndef f(x): return x\nf(math)", "import"),
    ("import math\ndef f(x=math): return x", "import"),
    ("import math\ndef f(): return [m for m in [math]], [math for math in [math]]", "import"),
    ("import math as m\ndef f():\n    [m for m in ()]\n    return m", "import"),
    ("import math\ndef f(math):\n    import math\n    return math", "import"),
    ("import math\ndef f(math):\n    def g():\n        global math\n        return math\n    return g", "import"),
    ("import math\nmatch math:\n    case object(floor=b): pass", "import"),
    ("import math\nmath.floor = abs", "import"),
    ("import math\ndel math.floor", "import"),
    ("import math\nmath.floor += 1", "import"),
    ("import collections\ncollections.Counter.update = abs", "import"),
    ("from collections import Counter\nCounter.update = abs", "import"),
    ("async def f(): pass", "language"),
    ("class A(metaclass=B): pass", "language"),
    ("try: pass\nexcept* ValueError: pass", "language"),
    ("a" * (MAX_SOURCE + 1), "source"),
    ("-" * 30_000 + "1", "source"),
    ("x" + ".b" * 15_000, "source"),
]


@pytest.mark.parametrize("program", ALLOWED)
def test_ordinary_programs_are_allowed(program):
    assert refusal(program) is None


@pytest.mark.parametrize(("program", "name"), REFUSED)
def test_a_refusal_names_its_rule(program, name):
    refused = refusal(program)
    assert refused is not None
    assert refused.name == name
    assert refused.message


def test_the_first_refusal_counts_and_has_its_line():
    refused = refusal("import math\n\n\ndef f(x):\n    return open(x)\n\nimport os\n")
    assert (refused.name, refused.line) == ("builtin", 5)


@pytest.mark.parametrize("program", ["def f(:", "x = 1\0", "'\ud800'", "(" * 500, "return 1\n\x00", "\x0c\t x"])
def test_what_is_no_program_is_left_to_the_sandbox(program):
    assert refusal(program) is None


def test_nothing_is_run():
    assert refusal("raise SystemExit\nwhile True: pass\n1 / 0") is None


@given(st.text(max_size=200) | st.text(alphabet="()[]{}:=.,'\"\\ \n_axif1*@#lambd\t", max_size=200))
def test_no_text_makes_it_raise(program):
    refusal(program)


def test_every_allowed_module_can_be_imported_by_programs():
    from selfplay_gym.executors.modules import PRELOADED

    assert set(PRELOADED) >= policy.MODULES
