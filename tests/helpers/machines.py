"""The same computation by several numbers of threads, and in a process at every CPU level."""

import contextlib
import ctypes
import os
import platform
import subprocess
import sys

import numpy as np

import fastderiv as fd


def by_threads(call, *counts):
    """What `call` returns with each number of threads."""
    before, results = fd.get_num_threads(), []
    try:
        for n in counts:
            fd.set_num_threads(n)
            results.append(call())
    finally:
        fd.set_num_threads(before)
    return results


def run_at_level(level, script, **environ):
    env = {**os.environ, "FASTDERIV_CPU": level, **environ}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_levels_agree(script):
    """The script prints pairs of a hash and a sum.

    x86-64-v3 and -v4 agree bit for bit, the others in rounding.
    """
    levels = fd.show_config()["CPU levels supported"]
    words = {level: run_at_level(level, script).split() for level in levels}
    if {"x86-64-v3", "x86-64-v4"} <= set(levels):
        assert words["x86-64-v3"] == words["x86-64-v4"]
    sums = [[float(x) for x in words[level][1::2]] for level in levels]
    assert sums[0]
    for others in sums[1:]:
        np.testing.assert_allclose(others, sums[0], rtol=1e-5)


_ROUNDING = {  # what fesetround takes
    "x86_64": {"up": 0x800, "down": 0x400, "zero": 0xC00},
    "aarch64": {"up": 0x400000, "down": 0x800000, "zero": 0xC00000},
}
# where in glibc's fenv_t: MXCSR's FTZ and DAZ, FPCR's FZ
_FLUSH = {"x86_64": (28, 0x8040), "aarch64": (0, 1 << 24)}


@contextlib.contextmanager
def control_register(rounding=None, flush=False):
    """This thread with another rounding mode, subnormal numbers flushed to zero, or both.

    `rounding` is "up", "down" or "zero".  Does nothing where the C library is not glibc or the
    machine is another.
    """
    machine = platform.machine()
    if not (rounding or flush) or platform.libc_ver()[0] != "glibc" or machine not in _ROUNDING:
        yield
        return
    libm = ctypes.CDLL("libm.so.6")
    before, changed = ctypes.create_string_buffer(64), ctypes.create_string_buffer(64)
    libm.fegetenv(before)
    if rounding:
        libm.fesetround(_ROUNDING[machine][rounding])
    if flush:
        at, bits = _FLUSH[machine]
        libm.fegetenv(changed)
        word = int.from_bytes(changed[at : at + 4], "little") | bits
        changed[at : at + 4] = word.to_bytes(4, "little")
        libm.fesetenv(changed)
    try:
        yield
    finally:
        libm.fesetenv(before)
