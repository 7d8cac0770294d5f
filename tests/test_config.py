"""Configuration: threads, environment variables, what an import costs, and one version everywhere."""

import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import fastderiv as fd

ROOT = Path(__file__).parents[1]


def python(code, **environment):
    """`code` in a fresh interpreter."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FASTDERIV_")} | {"PYTHONIOENCODING": "utf-8"}
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
    with pytest.raises(ValueError, match=f"^n is {re.escape(repr(n))}; expected a positive integer"):
        fd.set_num_threads(n)
    assert fd.get_num_threads() == threads


def test_environment_sets_the_threads():
    assert python("import fastderiv; print(fastderiv.get_num_threads())", FASTDERIV_NUM_THREADS="3").stdout == "3\n"


def test_empty_environment_variables_mean_unset():
    code = "import fastderiv as fd; print(fd.show_config()['CPU level in use'], fd.get_num_threads() >= 1)"
    done = python(code, FASTDERIV_NUM_THREADS="", FASTDERIV_CPU="")
    assert done.stdout == f"{fd.show_config()['CPU levels supported'][-1]} True\n", done.stderr


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", " 2", "1e3", "٣", "99999999999"])
def test_malformed_number_of_threads_is_an_import_error(value):
    done = python("import fastderiv", FASTDERIV_NUM_THREADS=value)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ImportError: FASTDERIV_NUM_THREADS={value!r}; expected a positive integer"


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
    with pytest.raises(ImportError, match="is built but not supported by this CPU; possible here: x86-64"):
        dispatch._choose(dispatch.LEVEL_NAMES[highest])


@pytest.mark.parametrize("level", fd.show_config()["CPU levels supported"])
def test_every_supported_level_can_be_forced(level):
    done = python("import fastderiv; print(fastderiv.show_config()['CPU level in use'])", FASTDERIV_CPU=level)
    assert done.stdout.strip() == level, done.stderr


def test_show_config_is_complete_and_prints_as_a_table():
    config = fd.show_config()
    assert list(config) == [
        "fastderiv", "Python", "NumPy", "SciPy", "compiler", "compiler flags", "CPU levels compiled", "CPU levels supported",
        "CPU level in use", "SIMD width", "threads",
    ]  # fmt: skip
    assert len(str(config).splitlines()) == len(config)
    assert set(config["CPU levels supported"]) <= set(config["CPU levels compiled"])
    assert "fast-math" not in config["compiler flags"] and "march=native" not in config["compiler flags"]


def test_import_brings_in_nothing_heavy():
    heavy = ("scipy", "matplotlib", "sklearn", "torch", "tqdm", "fastderiv.reference", "fastderiv.data")
    done = python(f"import sys, fastderiv; print([m for m in {heavy!r} if m in sys.modules])")
    assert done.stdout == "[]\n", done.stderr


def test_one_version_everywhere():
    assert (
        re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1].strip("\"'")
        == fd.__version__
    )
    released = re.search(
        r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text().replace("## [Unreleased]", ""), re.MULTILINE
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
