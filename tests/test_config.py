"""Configuration: threads, environment variables, what an import costs, one version everywhere."""

import os
import re
import subprocess
import sys
import textwrap
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import fastderiv as fd
from fastderiv._core.processors import available

ROOT = Path(__file__).parents[1]


def python(code, **environment):
    """`code` in a fresh interpreter."""
    ours = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith("FASTDERIV_") and k != "OMP_NUM_THREADS"
    }
    clean = ours | {"PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=clean | environment,
        check=False,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )


@pytest.fixture
def threads():
    before = fd.get_num_threads()
    yield before
    fd.set_num_threads(before)


def test_set_num_threads_is_kept_as_asked(threads):
    for n in (1, 3, 64, 10_000):
        fd.set_num_threads(n)
        assert fd.get_num_threads() == n == fd.show_config()["threads"]


@pytest.mark.parametrize("n", [0, -3, 1.0, 2.5, "2", None, True, 2**31, 10**30])
def test_set_num_threads_rejects_and_keeps_the_old_value(n, threads):
    with pytest.raises(
        ValueError, match=f"^n is {re.escape(repr(n))}; expected a positive integer"
    ):
        fd.set_num_threads(n)
    assert fd.get_num_threads() == threads


def test_environment_sets_the_threads():
    assert (
        python(
            "import fastderiv; print(fastderiv.get_num_threads())", FASTDERIV_NUM_THREADS="3"
        ).stdout
        == "3\n"
    )


def test_empty_environment_variables_mean_unset():
    code = (
        "import fastderiv; c = fastderiv.show_config()\n"
        "print(c['CPU level in use'], c['threads'] >= 1)"
    )
    done = python(code, FASTDERIV_NUM_THREADS="", FASTDERIV_CPU="")
    assert done.stdout == f"{fd.show_config()['CPU levels supported'][-1]} True\n", done.stderr


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", " 2", "1e3", "٣", "99999999999"])
def test_malformed_number_of_threads_is_an_import_error(value):
    done = python("import fastderiv", FASTDERIV_NUM_THREADS=value)
    assert done.returncode == 1
    assert (
        done.stderr.splitlines()[-1]
        == f"ImportError: FASTDERIV_NUM_THREADS={value!r}; expected a positive integer"
    )


def default(affinity=8, **environment):
    """The default number of threads where the affinity is so many processors."""
    code = f"""
        import os
        os.sched_getaffinity = lambda pid: range({affinity})
        import fastderiv
        print(fastderiv.get_num_threads())
    """
    done = python(textwrap.dedent(code), **environment)
    return int(done.stdout) if done.returncode == 0 else done.stderr


@pytest.mark.parametrize(
    "value, threads",
    [
        # numbers as OpenMP takes them
        ("1", 1), ("3", 3), (" 5 ", 5), ("2,4", 2), ("3,1", 3), ("64", 8), ("", 8),
        # what OpenMP ignores
        ("0", 8), ("-1", 8), ("two", 8), ("1.5", 8), (",2", 8), ("9" * 5000, 8), ("٣", 8),
    ],
)  # fmt: skip
def test_openmps_number_of_threads_is_a_limit(value, threads):
    assert default(OMP_NUM_THREADS=value) == threads


def test_our_own_variable_stands_above_all_limits():
    assert default(OMP_NUM_THREADS="1", FASTDERIV_NUM_THREADS="16") == 16


def test_limits_of_joblib_reach_its_processes():
    pytest.importorskip("joblib")
    code = """
        from joblib import Parallel, delayed, parallel_config
        def threads():
            import fastderiv
            return fastderiv.get_num_threads()
        if __name__ == "__main__":
            with parallel_config("loky", inner_max_num_threads=1):
                print(Parallel(2)(delayed(threads)() for _ in range(2)))
    """
    done = python(textwrap.dedent(code))
    assert done.stdout == "[1, 1]\n", done.stderr


# ---- control groups ---------------------------------------------------------------------------

V2 = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw"
V1 = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
INSIDE = "32 31 0:29 /docker/abc /sys/fs/cgroup/cpu rw shared:1 - cgroup cgroup rw,cpu"
MEMORY = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
TOP2, TOP1, TOP = "sys/fs/cgroup/", "sys/fs/cgroup/cpu,cpuacct/", "sys/fs/cgroup/cpu/"


def v1(folder, quota, period):
    """The files of a control group of version 1."""
    return {folder + "cpu.cfs_quota_us": str(quota), folder + "cpu.cfs_period_us": str(period)}


@pytest.mark.parametrize(
    "groups, mounts, files, processors",
    [
        # version 2: seen from inside its container; in a group below one with a smaller quota
        ("0::/", V2, {TOP2 + "cpu.max": "150000 100000"}, 2),
        ("0::/", V2, {TOP2 + "cpu.max": "50000 100000"}, 1),
        ("0::/", V2, {TOP2 + "cpu.max": "max 100000"}, 8),
        ("0::/", V2, {TOP2 + "cpu.max": "3200000 100000"}, 8),
        ("0::/a/b", V2, {TOP2 + "a/b/cpu.max": "300000 100000"}, 3),
        ("0::/a/b", V2, {TOP2 + "a/b/cpu.max": "max 100", TOP2 + "a/cpu.max": "1000 500"}, 2),
        ("0::/a/b", V2, {TOP2 + "a/b/cpu.max": "6000 1000", TOP2 + "cpu.max": "4000 1000"}, 4),
        ("0::/a/b", V2, {TOP2 + "a/c/cpu.max": "100000 100000"}, 8),
        ("0::/../b", V2, {TOP2 + "cpu.max": "200000 100000"}, 2),
        # version 1: quota -1 is none; inside a container the path is the host's
        (
            "4:memory:/a\n3:cpu,cpuacct:/a",
            f"{MEMORY}\n{V1}",
            v1(TOP1 + "a/", quota=250000, period=100000),
            3,
        ),
        ("3:cpu,cpuacct:/a", V1, v1(TOP1 + "a/", quota=-1, period=100000), 8),
        ("3:cpu:/docker/abc", INSIDE, v1(TOP, quota=20000, period=10000), 2),
        ("3:cpu:/docker/xyz", INSIDE, v1(TOP, quota=20000, period=10000), 2),
        # both, of which version 2 controls no processors
        ("3:cpu,cpuacct:/\n0::/", f"{V1}\n{V2}", v1(TOP1, quota=500000, period=100000), 5),
        # nothing, and nonsense
        ("", "", {}, 8),
        ("0::/", V2, {}, 8),
        ("nonsense", "nonsense\n- - -\n" + V2, {TOP2 + "cpu.max": "max 1"}, 8),
        ("0::/", V2, {TOP2 + "cpu.max": ""}, 8),
        ("0::/", V2, {TOP2 + "cpu.max": "100000 0"}, 8),
        ("0::/", V2, {TOP2 + "cpu.max": "0 100000"}, 1),
    ],
)
def test_quotas_of_control_groups(groups, mounts, files, processors, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8), raising=False)
    for name, text in {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert available(str(tmp_path)) == processors


def test_without_control_groups_the_affinity_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(5), raising=False)
    assert available(str(tmp_path)) == 5
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert available(str(tmp_path)) == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available(str(tmp_path)) == 1


# ---- threadpoolctl ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first", ["fastderiv as fd, threadpoolctl", "threadpoolctl, fastderiv as fd"]
)
def test_threadpoolctl_finds_and_limits_the_pool(first):
    pytest.importorskip("threadpoolctl")
    code = f"""
        import {first}
        libraries = threadpoolctl.threadpool_info()
        (before,) = [one for one in libraries if one["user_api"] == "fastderiv"]
        assert before["num_threads"] == fd.get_num_threads() == 3, before
        assert before["version"] == fd.__version__, before
        for limits in 1, {{"fastderiv": 1}}:
            with threadpoolctl.threadpool_limits(limits):
                assert fd.get_num_threads() == 1
            assert fd.get_num_threads() == 3
        with threadpoolctl.ThreadpoolController().limit(limits=2, user_api="fastderiv"):
            assert fd.get_num_threads() == 2
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            assert fd.get_num_threads() == 3
        with threadpoolctl.threadpool_limits(0):        # ignored, as other libraries do
            assert fd.get_num_threads() == 3
        print("done")
    """
    done = python(textwrap.dedent(code), FASTDERIV_NUM_THREADS="3")
    assert done.stdout == "done\n", done.stderr


@pytest.mark.parametrize("stand_in", ["None", "type(sys)('threadpoolctl')"])
def test_imports_without_threadpoolctl_and_with_one_too_old(stand_in):
    done = python(
        f"import sys; sys.modules['threadpoolctl'] = {stand_in}\n"
        "import fastderiv; print(fastderiv.get_num_threads())"
    )
    assert int(done.stdout) >= 1, done.stderr


# ---- workers of PyTorch's DataLoader ----------------------------------------------------------

LOADER = """
import os
import numpy as np
import fastderiv as fd
from torch.utils.data import DataLoader, Dataset

class Threads(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, i):
        u, A = np.ones((64, 4096)), -np.ones((64, 16))
        before = len(os.listdir("/proc/self/task"))
        fd.selective_scan(u, u, A, A, A)
        return fd.get_num_threads(), len(os.listdir("/proc/self/task")) - before

if __name__ == "__main__":
    for method in "fork", "spawn":
        for count, started in DataLoader(Threads(), num_workers=1, multiprocessing_context=method):
            print(int(count), int(started))
    print(fd.get_num_threads())
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_workers_of_a_data_loader_have_one_thread_by_default(tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "loader.py").write_text(LOADER)
    ours = {
        k: v for k, v in os.environ.items() if k not in ("FASTDERIV_NUM_THREADS", "OMP_NUM_THREADS")
    }
    done = subprocess.run(
        [sys.executable, str(tmp_path / "loader.py")],
        env=ours,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.stdout == f"1 0\n1 0\n{default(affinity=len(os.sched_getaffinity(0)))}\n", (
        done.stderr
    )


WORKER = """
import os, sys, types
import numpy as np

os.sched_getaffinity = lambda pid: range(3)
import fastderiv as fd

def report():
    u, A = np.ones((64, 8192)), -np.ones((64, 16))
    before = len(os.listdir("/proc/self/task"))
    fd.selective_scan(u, u, A, A, A)
    print(fd.get_num_threads(), len(os.listdir("/proc/self/task")) - before, flush=True)

def be_a_worker():  # as PyTorch tells it, after the fork
    sys.modules["torch.utils.data"] = types.SimpleNamespace(get_worker_info=lambda: "worker")

sys.modules["torch.utils.data"] = types.SimpleNamespace(get_worker_info=lambda: None)
{parent}
if os.fork():
    os.wait()
    report()
else:
    be_a_worker()
    {child}
    report()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
@pytest.mark.parametrize(
    "parent, child, variable, expected",
    [
        ("", "", "", "1 0\n3 2\n"),
        ("fd.set_num_threads(4)", "", "", "1 0\n4 3\n"),  # by the parent, not by the worker
        ("", "fd.set_num_threads(2)", "", "2 1\n3 2\n"),
        ("", "", "5", "5 4\n5 4\n"),
        ("", "sys.modules['torch.utils.data'] = None", "", "3 2\n3 2\n"),
        ("", "sys.modules['torch.utils.data'] = sys", "", "3 2\n3 2\n"),  # as good as half imported
    ],
)
def test_a_forked_worker_has_one_thread_unless_somebody_says_otherwise(
    parent, child, variable, expected
):
    done = python(WORKER.format(parent=parent, child=child), FASTDERIV_NUM_THREADS=variable)
    assert done.stdout == expected, done.stderr


@pytest.mark.parametrize("value", ["x86-64-v9", "avx512", "X86-64", "v4", "native", " "])
def test_unknown_cpu_level_is_an_import_error_that_lists_the_possible(value):
    done = python("import fastderiv", FASTDERIV_CPU=value)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: FASTDERIV_CPU={value!r} is unknown")
    assert last.endswith("possible here: " + ", ".join(fd.show_config()["CPU levels supported"]))


def test_a_level_built_but_not_supported_is_an_import_error(monkeypatch):
    from fastderiv._core import cpu, dispatch

    if len(cpu.SUPPORTED) < 2:
        pytest.skip("this CPU supports one level only")
    *fewer, highest = cpu.SUPPORTED
    monkeypatch.setattr(cpu, "SUPPORTED", fewer)
    with pytest.raises(
        ImportError, match="is built but not supported by this CPU; possible here: x86-64"
    ):
        dispatch._choose(dispatch.LEVEL_NAMES[highest])


@pytest.mark.parametrize("level", fd.show_config()["CPU levels supported"])
def test_every_supported_level_can_be_forced(level):
    done = python(
        "import fastderiv; print(fastderiv.show_config()['CPU level in use'])", FASTDERIV_CPU=level
    )
    assert done.stdout.strip() == level, done.stderr


def test_show_config_is_complete_and_prints_as_a_table():
    config = fd.show_config()
    assert list(config) == [
        "fastderiv",
        "Python",
        "NumPy",
        "SciPy",
        "compiler",
        "compiler flags",
        "CPU levels compiled",
        "CPU levels supported",
        "CPU level in use",
        "SIMD width",
        "threads",
    ]
    assert len(str(config).splitlines()) == len(config)
    assert set(config["CPU levels supported"]) <= set(config["CPU levels compiled"])
    flags = config["compiler flags"]
    assert "fast-math" not in flags and "march=native" not in flags


def test_import_brings_in_nothing_heavy():
    heavy = (
        "scipy",
        "matplotlib",
        "sklearn",
        "torch",
        "tqdm",
        "fastderiv.reference",
        "fastderiv.data",
    )
    done = python(f"import sys, fastderiv; print([m for m in {heavy!r} if m in sys.modules])")
    assert done.stdout == "[]\n", done.stderr


def test_one_version_everywhere():
    assert (
        re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1].strip(
            "\"'"
        )
        == fd.__version__
    )
    released = re.search(
        r"^## \[(.+?)\]",
        (ROOT / "CHANGELOG.md").read_text().replace("## [Unreleased]", ""),
        re.MULTILINE,
    )[1]
    assert released == fd.__version__
    try:
        assert version("fastderiv") == fd.__version__
    except PackageNotFoundError:
        pass  # run from a source tree that was built in place, not installed


def test_public_names_exist_once_and_are_documented():
    assert len(set(fd.__all__)) == len(fd.__all__)
    for name in fd.__all__:
        assert getattr(fd, name).__doc__, name
