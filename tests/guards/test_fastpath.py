"""The data plane never waits for the GIL and never touches a Python object but at its surface.

Cython takes the GIL where nobody wrote it: after a call to a function without `noexcept`, on `raise`, on a checked
index. So the rule is checked twice: in the sources, where it can be said to a person, and in the generated C, where it
is true.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.guards.sources import FASTPATH, ROOT, files, name

PYTHON_SURFACE = frozenset({"engine", "compiled", "credentials", "flow_look", "testing"})
"""Who talks to Python: the daemon's engine, the parts of tables and the certificates in them, looks at flows, and what
tests call the parser through."""

LAYERS = (
    ("c", "reasons"),
    ("memory", "clock", "timers", "counters", "ring", "message", "ktls", "proxy_protocol"),
    ("endpoint", "shares"),
    ("table",),
    ("reactor",),
    ("affinity",),
    ("balance", "tls", "pipes", "client_hello", "limits"),
    ("transport",),
    ("http1_parse", "clients", "http2_meter", "announce", "batches"),
    ("http2_fields",),
    ("http2",),
    ("http2_server", "http2_client"),
    ("http1",),
    ("accept", "upstream"),
    # All of them read the exchange, and the exchange calls them.
    ("exchange", "forwarded", "replay", "grpc", "grpc_web", "answers", "access", "stream", "datagram"),
    ("flows",),
    ("credentials",),
    ("compiled", "flow_look"),
    ("engine", "testing"),
)
"""From the ground up: a file cimports only from its own layer and the ones before it."""

# What Cython writes where Python comes into a function of ours.
PYTHON_IN_C = re.compile(
    r"__Pyx_ErrOccurredWithGIL|PyGILState_|__Pyx_PyGILState_|PyEval_|__Pyx_WriteUnraisable|__Pyx_AddTraceback|__Pyx_Raise"
    r"|\bPy_X?(?:INCREF|DECREF|CLEAR)|__Pyx_X?(?:INCREF|DECREF|GOTREF|GIVEREF)|PyErr_|PyObject|__Pyx_Py|\bPy[A-Z]\w+_\w+\("
)
FUNCTION_START = re.compile(r"^static [^;=]*\b(__pyx_f_\w+)\(.*\{\s*$")

# A declaration or definition, or a function pointer among a struct's fields.
SIGNATURE = re.compile(r"\s*(?:cdef|ctypedef)\s+(?!extern|enum|struct|union|packed|class)[^=]*\(|\s+\S.*\(\*\w+\)\(")

# A local struct of function pointers.
_LOCAL_TABLE = re.compile(r"^    cdef \w+_calls (?P<name>\w+)$", re.MULTILINE)

SOURCES = files(".pyx", ".pxd", under="lb/_fastpath")
OURS = [path for path in SOURCES if path.stem not in PYTHON_SURFACE and path.parent == FASTPATH]


def test_there_is_a_data_plane() -> None:
    assert {"memory.pyx", "http1.pyx", "table.pyx", "engine.pyx"} <= {path.name for path in SOURCES}


@pytest.mark.parametrize("path", OURS, ids=name)
def test_every_function_says_noexcept_nogil(path: Path) -> None:
    wrong = [f"{name(path)}:{line}: {text}" for line, text in _signatures(path) if "noexcept nogil" not in text]
    assert not wrong, "say `noexcept nogil`, or Cython takes the GIL after every call:\n" + "\n".join(wrong)


def test_tables_of_functions_begin_empty() -> None:
    """C leaves a local as the stack was: a function that nobody has set would be called, or a flag be on, by chance."""
    tables, wrong = 0, []
    for path in OURS:
        text = path.read_text()
        for match in _LOCAL_TABLE.finditer(text):
            tables += 1
            rest_of_function = text[match.end() :].split("\ncdef ")[0]
            if f"memset(&{match['name']}, 0, sizeof({match['name']}))" not in rest_of_function:
                wrong.append(f"{name(path)}: {match['name']}")
    assert tables, "the pattern finds none: mend it"
    assert not wrong, "memset it before its fields are set:\n" + "\n".join(wrong)


@pytest.mark.parametrize("path", OURS, ids=name)
def test_python_objects_only_at_the_surface(path: Path) -> None:
    python = re.compile(r"^\s*(def |cpdef |class |cdef class |import |from \S+ import |with gil)|\bobject \w+[,)]")
    lines = enumerate(path.read_text().splitlines(), 1)
    wrong = [f"{name(path)}:{line}: {text.strip()}" for line, text in lines if python.search(text)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_layers(path: Path) -> None:
    """Lower layers call upwards only through function pointers in structs, so there are no cycles."""
    here = _layer("c" if path.parent != FASTPATH else path.stem)
    wrong = [module for module in _cimports(path) if _layer(module) > here]
    assert not wrong, f"{name(path)} knows {wrong}, which stand above it in LAYERS"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_each_flag_has_a_bit_of_its_own(path: Path) -> None:
    enums = re.findall(r"^cdef enum:  # (.*\bflags\b.*)\n((?: +(?:\w+ = \d+|#).*\n)+)", path.read_text(), re.MULTILINE)
    for what, members in enums:
        bits = Counter(re.findall(r"^ +\w+ = (\d+)", members, re.MULTILINE))
        assert max(bits.values()) == 1, f"{name(path)}: two of {what} are the same: {bits}"


def test_documentation_lists_the_layers() -> None:
    """Every file stands in docs/architecture.md, and none above one that it may not know."""
    text = (ROOT / "docs/architecture.md").read_text()
    block = text.partition("### The data plane\n")[2].split("```")[1]
    listed = [word for line in block.splitlines() for word in line[:36].replace(",", " ").split()]
    assert sorted(listed) == sorted(one for layer in LAYERS for one in layer)
    assert listed == sorted(listed, key=_layer)


class Translation(NamedTuple):
    messages: str
    directory: Path


@pytest.fixture(scope="module")
def translation(tmp_path_factory: pytest.TempPathFactory) -> Translation:
    """The whole data plane translated anew, by setup.py itself, away from the build."""
    tree = tmp_path_factory.mktemp("translated")
    for part in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "lb/__init__.py"):
        (tree / part).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / part, tree / part)
    shutil.copytree(FASTPATH, tree / "lb/_fastpath", ignore=shutil.ignore_patterns("*.so", "*.pyc", "*.html"))
    for path in (tree / "lb/_fastpath").glob("*.c"):
        path.unlink()
    # The optimised build is the one that serves, whatever this run tests.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LB_")}
    command = [sys.executable, "setup.py", "--version"]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Translation(done.stdout + done.stderr, tree / "lb/_fastpath")


def test_translation_warns_of_nothing(translation: Translation) -> None:
    """Performance hints included: each of them is a place where the GIL is taken."""
    told = re.findall(r"^.*(?:warning:|performance hint:).*$", translation.messages, re.MULTILINE)
    assert not told, "\n".join(told)


def test_generated_c_is_free_of_python(translation: Translation) -> None:
    modules = sorted(translation.directory.glob("*.c"))
    assert modules
    # Cython writes the length of a name before it: __pyx_f_2lb_9_fastpath_6engine_run.
    own = re.compile("|".join(rf"__pyx_f_2lb_9_fastpath_{len(module)}{module}_" for module in PYTHON_SURFACE))
    found = []
    seen = set()
    for path in modules:
        for function, line, text in _functions(path):
            seen.add(function)
            # Functions of other files that are inlined into engine.c stay under the rule.
            if not own.match(function) and PYTHON_IN_C.search(text):
                found.append(f"{path.name}:{line} {function}: {text.strip()}")
    assert len(seen) > 200, "the pattern no longer finds the functions that Cython writes"
    assert not found, "\n".join(found[:40])


def test_the_check_of_generated_c_sees_the_gil(tmp_path: Path) -> None:
    """A guard that finds nothing in bad code would guard nothing."""
    source = tmp_path / "bad.pyx"
    source.write_text(
        "cdef int leaf(int x) nogil:\n    return x\n"
        "cdef int bad(int x) noexcept nogil:\n    return leaf(x)\n"
        "cdef int good(int x) noexcept nogil:\n    return x + 1\n"
    )
    subprocess.run([sys.executable, "-m", "cython", "-3", source], check=True, capture_output=True)
    functions = {function for function, _, text in _functions(tmp_path / "bad.c") if PYTHON_IN_C.search(text)}
    assert functions == {"__pyx_f_3bad_bad"}


def _signatures(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every function declaration, definition and function pointer, with its continuation lines."""
    lines = path.read_text().splitlines()
    index = 0
    while index < len(lines):
        start = index
        text = lines[index].split("#")[0].rstrip()
        index += 1
        if not SIGNATURE.match(text):
            continue
        while text.count("(") > text.count(")"):
            text += " " + lines[index].split("#")[0].strip()
            index += 1
        yield start + 1, text


def _cimports(path: Path) -> set[str]:
    """Names of the data plane's modules that a file knows."""
    return set(
        re.findall(r"\blb\._fastpath\.(\w+)", "\n".join(re.findall(r"^.*cimport.*$", path.read_text(), re.MULTILINE)))
    )


@cache
def _layer(module: str) -> int:
    for index, modules in enumerate(LAYERS):
        if module in modules:
            return index
    raise AssertionError(f"lb/_fastpath/{module} has no place in LAYERS")


def _functions(path: Path) -> Iterator[tuple[str, int, str]]:
    """(function, line, text) of every line that Cython made from a cdef function; not of its own boilerplate."""
    current = ""
    for line, text in enumerate(path.read_text().splitlines(), 1):
        if text.startswith("}"):
            current = ""
        elif start := FUNCTION_START.match(text):
            current = start[1]
        elif current and not text.lstrip().startswith(("/*", "*")):
            yield current, line, text


def test_flags_of_one_word_have_bits_of_their_own() -> None:
    texts = [(FASTPATH / name).read_text() for name in ("reactor.pxd", "transport.pxd")]
    flags = [int(bit) for text in texts for bit in re.findall(r"^    IO_[A-Z_]+ = ([0-9]+)", text, re.MULTILINE)]
    assert len(flags) > 10
    assert len(flags) == len(set(flags))
    assert all(bit.bit_count() == 1 for bit in flags)
