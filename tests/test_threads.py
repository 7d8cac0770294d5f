"""The thread pool, re-entered, forked, resized and interrupted at the worst moments."""

import os
import platform
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

import fastderiv as fd
from helpers.interrupt import ALLOWED, seconds_until_answered

LINUX = sys.platform.startswith("linux")
CASE = """
import os, signal, sys, threading, time
import numpy as np
import fastderiv as fd

def scan(steps=8192):
    u, A = np.sin(np.arange(64.0 * steps)).reshape(64, steps), -np.ones((64, 16))
    return fd.selective_scan(u, np.abs(u), A, A, A).tobytes()

"""


@pytest.fixture(autouse=True)
def threads():
    before = fd.get_num_threads()
    yield
    fd.set_num_threads(before)


def run(code, **environment):
    """The output of `code` after `CASE`, in an interpreter that must end without a crash."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", CASE + textwrap.dedent(code)],
        env=os.environ | {"FASTDERIV_NUM_THREADS": "4"} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs interval timers")
def test_signal_handlers_that_compute():
    """A handler runs inside `run`, when the pool is busy with the very call it interrupts."""
    code = """
        right, calls = scan(), []

        def handler(signum, frame):
            calls.append(scan() == right)
            signal.setitimer(signal.ITIMER_REAL, 0.01)

        signal.signal(signal.SIGALRM, handler)
        expected = scan(50_000)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        results = [scan(50_000) == expected for _ in range(5)]
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(all(results), all(calls), len(calls) > 0)
    """
    assert run(code) == "True True True\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs interval timers")
def test_signal_handlers_that_compute_and_raise():
    code = """
        def handler(signum, frame):
            scan()
            raise KeyError("mine")

        right = scan()
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            while True:
                scan(50_000)
        except KeyError as error:
            print(error, scan() == right)
    """
    assert run(code) == "'mine' True\n"


def test_progress_callbacks_that_compute():
    fd.set_num_threads(3)
    rng = np.random.default_rng(0)
    net = fd.SigmoidMLP(
        [rng.normal(size=(2, 3)), rng.normal(size=(3, 2))], [rng.normal(size=3), rng.normal(size=2)]
    )
    rows = rng.normal(size=70_000)
    expected = fd.solve_x1(net, rows)
    inner = []

    def progress(done, total):
        fd.set_num_threads(1 + done % 4)
        inner.append(fd.solve_x1(net, rows[:3000]).x.tobytes())

    ours = fd.solve_x1(net, rows, progress=progress)
    assert ours.x.tobytes() == expected.x.tobytes() and len(inner) > 0
    assert set(inner) == {fd.solve_x1(net, rows[:3000]).x.tobytes()}


def test_many_python_threads_while_another_sets_their_number():
    u, A = np.sin(np.arange(64.0 * 4096)).reshape(64, 4096), -np.ones((64, 16))
    expected = fd.selective_scan(u, np.abs(u), A, A, A).tobytes()
    wrong, stop = [], threading.Event()

    def compute():
        for _ in range(12):
            if fd.selective_scan(u, np.abs(u), A, A, A).tobytes() != expected:
                wrong.append(threading.get_ident())

    def resize():
        n = 0
        while not stop.is_set():
            n = n % 17 + 1
            fd.set_num_threads(n)
            time.sleep(1e-4)

    workers = [threading.Thread(target=compute) for _ in range(6)]
    other = threading.Thread(target=resize)
    for thread in (*workers, other):
        thread.start()
    for thread in workers:
        thread.join()
    stop.set()
    other.join()
    assert not wrong


@pytest.mark.skipif(not LINUX, reason="counts threads in /proc")
def test_no_call_starts_more_threads_than_promised():
    code = """
        before = len(os.listdir("/proc/self/task"))
        fd.set_num_threads(10**9)
        expected = fd.subset_sums(np.arange(23.0)).tobytes()
        started = len(os.listdir("/proc/self/task")) - before
        fd.set_num_threads(1)
        print(0 < started <= 255, fd.subset_sums(np.arange(23.0)).tobytes() == expected)
    """
    assert run(code) == "True True\n"


@pytest.mark.skipif(not LINUX, reason="limits are the system's")
def test_threads_that_cannot_be_started_are_done_without():
    code = """
        import resource
        right = scan()
        threading.stack_size(1 << 30)                        # no room for it below
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + (600 << 20), -1))
        fd.set_num_threads(8)
        print(scan() == right)
    """
    assert run(code) == "True\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forks_while_other_threads_compute():
    """The child has one thread, whatever the others held when it was made."""
    code = """
        right, stop = scan(), threading.Event()

        def compute():
            while not stop.is_set():
                scan()

        others = [threading.Thread(target=compute) for _ in range(3)]
        for thread in others:
            thread.start()
        codes = []
        for _ in range(15):
            pid = os.fork()
            if pid == 0:
                signal.alarm(60)                             # a deadlock ends in another exit code
                os._exit(0 if scan() == right == scan() else 1)
            codes.append(os.waitpid(pid, 0)[1])
        stop.set()
        for thread in others:
            thread.join()
        print(set(codes))
    """
    assert run(code) == "{0}\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_children_of_children_compute():
    code = """
        right = scan()
        for _ in range(4):
            if os.fork():
                _, status = os.wait()
                os._exit(status >> 8)
            assert scan() == right
        print("done", flush=True)
        os._exit(0)
    """
    assert run(code) == "done\n"


def test_the_interpreter_ends_while_daemon_threads_compute():
    code = """
        def compute():
            while True:
                scan()

        for _ in range(4):
            threading.Thread(target=compute, daemon=True).start()
        time.sleep(0.3)
        print("end")
    """
    for _ in range(3):
        assert run(code) == "end\n"


def test_computing_at_exit():
    code = """
        import atexit
        right = scan()
        atexit.register(lambda: print(scan() == right))
    """
    assert run(code) == "True\n"


# ---- the floating-point state the pool is born in ---------------------------------------------

STATE = """
import ctypes, hashlib

libm = ctypes.CDLL(None)
wave = np.sin(np.arange(64.0 * 8192)).reshape(64, 8192)
tiny, A = (wave * 1e-20).astype(np.float32), np.ones((64, 16), np.float32)
inputs = wave, np.abs(wave), tiny, np.abs(tiny), A, -A, A * np.float32(1e-20), wave[0, :22] * 1e-310

def results(u, delta, tiny, size, A, minus, small, subnormal):
    yield fd.selective_scan(u, delta, minus, A, A)
    yield fd.selective_scan(tiny, size, minus, small, A)
    yield fd.subset_sums(subnormal)

def round_towards(mode):
    assert libm.fesetround(mode) == 0

def flush():
    environment = (ctypes.c_uint32 * 8)()   # glibc's fenv_t on x86-64, which ends with MXCSR
    assert libm.fegetenv(environment) == 0
    environment[7] |= 0x8040
    assert libm.fesetenv(environment) == 0

digest = hashlib.sha256()
{set_state}
for threads in 4, 1, 3:                     # the first starts three threads in this state
    fd.set_num_threads(threads)
    for array in results(*inputs):
        digest.update(array.tobytes())
print(digest.hexdigest(), libm.fegetround())
"""
ROUNDINGS = {"x86_64": (0, 0x400, 0x800, 0xC00), "aarch64": (0, 0x400000, 0x800000, 0xC00000)}.get(
    platform.machine(), ()
)


@pytest.mark.skipif(not (LINUX and ROUNDINGS), reason="needs glibc's numbers of the modes")
def test_a_pool_born_in_another_floating_point_state_computes_the_same_bits():
    """Threads inherit the state of the one that starts them; each call sets it while it lasts."""
    digests = set()
    for mode in ROUNDINGS:
        digest, after = run(STATE.replace("{set_state}", f"round_towards({mode})")).split()
        assert int(after) == mode
        digests.add(digest)
    if platform.machine() == "x86_64":
        digests.add(run(STATE.replace("{set_state}", "flush()")).split()[0])
    assert len(digests) == 1


# ---- Ctrl-C -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_ctrl_c_is_answered_while_the_caller_waits_for_the_others():
    """Nine equal tasks for eight threads.

    Nearly always another thread has the last one, and the caller has nothing to do.
    """
    A = -np.ones((1, 16))
    u = np.broadcast_to(0.5, (9, 1, 1_500_000))
    fd.set_num_threads(8)
    start = time.perf_counter()
    fd.chunk_summary(u, u, A, A)
    all_of_it = time.perf_counter() - start
    answers = []
    for part in 0.95, 0.9, 0.85, 0.8, 0.7, 0.6:
        try:
            delay = part * all_of_it
            answers.append(
                seconds_until_answered(lambda: fd.chunk_summary(u, u, A, A), delay=delay)
            )
        except AssertionError:
            continue  # it was faster this time, and over before
    assert answers and max(answers) < ALLOWED
