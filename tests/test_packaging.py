"""What is shipped: the sdist, the wheel built from it, and that wheel in a fresh environment.

Also what is not: a build with symbols and assertions, for those who work on the kernels.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
NOT_SOURCE = shutil.ignore_patterns(
    ".git",
    ".venv*",
    "build",
    "dist",
    "*.so",
    "*.pyd",
    "*.egg-info",
    "__pycache__",
    ".*_cache",
    ".hypothesis",
)

pytestmark = pytest.mark.slow


def run(*command, cwd, **environment):
    """The output of a command that must succeed.

    It sees neither this source tree nor this process's settings.
    """
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FASTDERIV_", "PYTHON"))}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=clean | environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


EPOCH = "1700000000"  # the time that archives are told to have been made at


def built(folder):
    """A folder with the sdist and the wheel that `build` makes from it, each in isolation."""
    pytest.importorskip("build")
    shutil.copytree(
        ROOT, folder / "tree", ignore=NOT_SOURCE
    )  # building writes metadata next to the sources
    run(
        sys.executable,
        "-m",
        "build",
        "--outdir",
        str(folder / "dist"),
        str(folder / "tree"),
        cwd=folder,
        SOURCE_DATE_EPOCH=EPOCH,
    )
    return folder / "dist"


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    return built(tmp_path_factory.mktemp("packaging"))


@pytest.fixture(scope="module")
def wheel(dist):
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The interpreter of a fresh environment that holds the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("elsewhere")
    return installed(folder, str(wheel))


def installed(folder, *what, **environment):
    """The interpreter of a new environment in `folder`, in which pip has installed `what`."""
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(str(python), "-m", "pip", "install", "-q", *what, cwd=folder, **environment)
    return python


@pytest.fixture(scope="module")
def levels(python):
    code = "import fastderiv; print(*fastderiv.show_config()['CPU levels supported'])"
    return run(str(python), "-c", code, cwd=python.parent).split()


@pytest.fixture(scope="module")
def smoke(python, levels):
    """CPU level -> name of function -> its results on tiny input."""
    return {level: results_of(python, level) for level in levels}


def results_of(python, level):
    script = shutil.copy(Path(__file__).with_name("smoke.py"), python.parent)
    printed = run(str(python), str(script), cwd=python.parent, FASTDERIV_CPU=level)
    return {
        one["name"]: [np.frombuffer(bytes.fromhex(r["bytes"]), r["dtype"]) for r in one["results"]]
        for one in map(json.loads, printed.splitlines())
    }


def test_sdist_holds_the_sources_and_nothing_generated(dist):
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        "README.md",
        "CHANGELOG.md",
        "CITATION.cff",
        "LICENSE",
        "pyproject.toml",
        "setup.py",
        "tests/smoke.py",
        "tests/helpers/awkward.py",
        "tests/fuzz_corpus.jsonl",
        "SECURITY.md",
    }
    wanted |= {
        "src/fastderiv/" + name
        for name in (
            "py.typed",
            "_core/simd.h",
            "ssm/_kernels.pyx",
            "ssm/s6/_adjoint.pxi",
            "data/iris.csv",
            "data/network.json",
        )
    }
    assert wanted <= names
    assert not [
        n
        for n in names
        if n.endswith((".so", ".pyd", ".o")) or (n.endswith(".c") and n.startswith("src/"))
    ]


def test_wheel_holds_what_runs_and_no_sources_of_extensions(wheel):
    with zipfile.ZipFile(wheel) as archive:
        files = {info.filename: info.file_size for info in archive.infolist()}
    assert not [n for n in files if n.endswith((".c", ".pyx", ".pxi", ".pxd", ".h"))]
    wanted = {
        "py.typed",
        "_core/cache.pyi",
        "_core/cpu.pyi",
        "_core/plain.pyi",
        "_core/threads.pyi",
        "_cli/demo.py",
        "data/README.md",
        "data/iris.csv",
        "data/network.json",
        "data/sunspots.csv",
        "data/train_network.py",
        "integrations/mamba_ssm/packages/mamba_ssm/__init__.py",
        "integrations/mamba_ssm/packages/selective_scan_cuda.py",
        "integrations/mamba_ssm/startup/sitecustomize.py",
        "integrations/torch/__init__.py",
        "integrations/transformers/__init__.py",
    }
    assert {"fastderiv/" + name for name in wanted} <= files.keys()
    assert {name.partition("/")[0].partition("-")[0] for name in files} == {"fastderiv"}
    assert any(name.endswith("licenses/LICENSE") for name in files)
    compiled = [size for name, size in files.items() if name.endswith((".so", ".pyd"))]
    assert compiled and sum(compiled) <= 5_000_000


def test_wheel_needs_numpy_and_scipy_only(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    required = [
        line.removeprefix("Requires-Dist: ")
        for line in lines
        if line.startswith("Requires-Dist:") and "extra ==" not in line
    ]
    assert sorted(name.partition(">")[0] for name in required) == ["numpy", "scipy"]
    assert "License-Expression: BSD-3-Clause" in lines


def test_two_builds_are_the_same_bytes(dist, tmp_path):
    """Whenever and wherever they are made: what is published can be checked against its sources."""
    again = built(tmp_path)
    assert sorted(path.name for path in dist.iterdir()) == sorted(
        path.name for path in again.iterdir()
    )
    for path in dist.glob("*.whl"):
        with zipfile.ZipFile(path) as ours, zipfile.ZipFile(again / path.name) as theirs:
            assert [i.filename for i in ours.infolist()] == [i.filename for i in theirs.infolist()]
            assert not [
                i.filename for i in ours.infolist() if ours.read(i) != theirs.read(i.filename)
            ]
        assert path.read_bytes() == (again / path.name).read_bytes()


@pytest.mark.parametrize("tool", ["twine check --strict", "check-wheel-contents"])
def test_archives_pass_the_checks_of_others(dist, tool):
    """abi3audit is none of them.

    The modules use more of CPython than its stable interface, and are built for each version.
    """
    name, *options = tool.split()
    pytest.importorskip(name.replace("-", "_"))
    files = sorted(dist.glob("*.whl" if name == "check-wheel-contents" else "*"))
    run(sys.executable, "-m", name.replace("-", "_"), *options, *map(str, files), cwd=dist)


def test_installed_demo_passes_at_every_level(python, levels):
    for level in levels:
        printed = run(str(python), "-m", "fastderiv", cwd=python.parent, FASTDERIV_CPU=level)
        assert printed.startswith("fastderiv") and f"{level} kernels" in printed
        assert "All checks passed" in printed


def test_installed_script_prints_the_configuration(python):
    assert "CPU level in use" in run(str(python.with_name("fastderiv")), "info", cwd=python.parent)


def test_every_public_function_runs_at_every_level(smoke, levels):
    assert list(smoke) == levels
    assert all(len(one) > 3 for one in smoke.values())


def test_levels_with_fma_agree_bit_for_bit_and_the_baseline_in_rounding(smoke):
    best = smoke[list(smoke)[-1]]
    for level, results in smoke.items():
        for name, arrays in results.items():
            for ours, theirs in zip(arrays, best[name], strict=True):
                if level in ("x86-64-v3", "x86-64-v4"):
                    assert ours.tobytes() == theirs.tobytes(), (level, name)
                else:
                    tolerance = 2e-5 if ours.dtype == np.float32 else 1e-12
                    np.testing.assert_allclose(
                        ours,
                        theirs,
                        rtol=0,
                        atol=tolerance * np.abs(theirs).max(initial=0),
                        err_msg=f"{level} {name}",
                    )


def test_debug_build_has_symbols_assertions_and_the_same_results(smoke, levels, tmp_path):
    shutil.copytree(ROOT, tmp_path / "tree", ignore=NOT_SOURCE)
    tree = str(tmp_path / "tree")
    python = installed(tmp_path, "-e", tree, FASTDERIV_DEBUG="1")
    code = "import fastderiv; print(fastderiv.show_config()['compiler flags'])"
    flags = run(str(python), "-c", code, cwd=tmp_path).split()
    assert "-g" in flags or "/Z7" in flags
    modules = list((tmp_path / "tree" / "src" / "fastderiv").rglob("_kernels_*.so"))
    if sys.platform == "linux":
        assert modules and all(b".debug_info" in path.read_bytes() for path in modules)
        assert any(b"__assert_fail" in path.read_bytes() for path in modules)
    for level in levels:
        for name, arrays in results_of(python, level).items():
            for ours, theirs in zip(arrays, smoke[level][name], strict=True):
                assert ours.tobytes() == theirs.tobytes(), (level, name)
