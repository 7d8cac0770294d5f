"""The same computation by several numbers of threads, and in a process of its own at every CPU level."""

import os
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
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_levels_agree(script):
    """The script prints pairs of a hash and a sum: v3 and v4 agree bit for bit, the others in rounding."""
    levels = fd.show_config()["CPU levels supported"]
    words = {level: run_at_level(level, script).split() for level in levels}
    if {"x86-64-v3", "x86-64-v4"} <= set(levels):
        assert words["x86-64-v3"] == words["x86-64-v4"]
    sums = [[float(x) for x in words[level][1::2]] for level in levels]
    assert sums[0]
    for others in sums[1:]:
        np.testing.assert_allclose(others, sums[0], rtol=1e-5)
