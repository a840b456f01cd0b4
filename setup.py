"""Build of the data plane: one list of directives for every extension, and the debug and sanitizer builds.

LB_DEBUG=1     -O0 -g, Cython asserts and bounds checks
LB_SANITIZE=1  AddressSanitizer and UndefinedBehaviorSanitizer; run under LD_PRELOAD of libasan (see Makefile)
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("LB_DEBUG") == "1"
SANITIZE = os.environ.get("LB_SANITIZE") == "1"
CHECKED = DEBUG or SANITIZE

# Inline functions in a .pxd take the directives of the module that imports them, so they are set once, for all.
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": CHECKED,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "nonecheck": False,
    "embedsignature": True,
    "show_performance_hints": True,
    "binding": False,
}

COMPILE = ["-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-unused-function", "-Wno-cpp"]
LINK: list[str] = []
if SANITIZE:
    COMPILE += [
        "-O1",
        "-g",
        "-fno-omit-frame-pointer",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=undefined",
    ]
    LINK += ["-fsanitize=address,undefined"]
elif DEBUG:
    COMPILE += ["-O0", "-g"]
else:
    COMPILE += ["-O2", "-g1", "-fno-plt", "-fno-semantic-interposition"]

FASTPATH = Path("lb/_fastpath")

# What an extension is linked with, besides libc.
LIBRARIES = {
    "credentials": ["ssl", "crypto"],
    "http2": ["nghttp2"],
    "http2_client": ["nghttp2"],
    "http2_fields": ["crypto"],
    "http2_meter": ["nghttp2"],
    "http2_server": ["nghttp2"],
    "tls": ["ssl", "crypto"],
}

extensions = [
    Extension(
        f"lb._fastpath.{source.stem}",
        [str(source)],
        include_dirs=[str(FASTPATH / "c")],
        depends=[str(path) for pattern in ("*.pxd", "c/*") for path in FASTPATH.glob(pattern)],
        libraries=LIBRARIES.get(source.stem, []),
        extra_compile_args=COMPILE,
        extra_link_args=LINK,
    )
    for source in sorted(FASTPATH.glob("*.pyx"))
]

setup(ext_modules=cythonize(extensions, compiler_directives=DIRECTIVES, nthreads=os.cpu_count() or 1))
