"""The suite under sanitizers: a copy of the tree, extensions built for one, each report an error.

    python tests/sanitize.py address [options of pytest]     AddressSanitizer with UBSan
    python tests/sanitize.py thread [options of pytest]      ThreadSanitizer; tests of the threads
    python tests/sanitize.py valgrind [options of pytest]    slow: give it few tests

Runs at every CPU level of this machine, or at those of --level.  The compiler is $CC, else gcc.
Needs Linux, and GCC or Clang.
"""

import argparse
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_SOURCE = (
    ".git",
    ".venv*",
    "build",
    "dist",
    "*.so",
    "*.egg-info",
    "__pycache__",
    ".*_cache",
    ".hypothesis",
)

# These are appended to every command of the compiler, after Python's own -fwrapv and the project's
# flags: the last one wins.  -g1 gives lines, and no names of variables, which double the time.
COMMON = "-O1 -g1 -fno-omit-frame-pointer -fno-wrapv"
FLAGS = {
    "address": f"{COMMON} -fsanitize=address,undefined,float-cast-overflow",
    "thread": f"{COMMON} -fsanitize=thread",
    "valgrind": f"{COMMON}",
}
# what the project's own flags would spoil: no line numbers, no symbols
DROPPED = ("-g0", "-Wl,-s", "-O2", "-O3")
REPORTS = re.compile(
    r"runtime error:|ERROR: \w+Sanitizer|WARNING: ThreadSanitizer"
    r"|==\d+== (?:Invalid|Conditional|Use of uninit)"
)
TESTS = {  # unless others are given
    "address": ["tests", "--ignore=tests/test_typing.py", "--ignore=tests/test_packaging.py"],
    "thread": [
        "tests/test_config.py",
        "tests/test_threads.py",
        "tests/test_ssm.py",
        "tests/test_subsets.py",
        "-k",
        "thread or fork or interrupt",
    ],
    "valgrind": ["tests/test_optim.py", "tests/test_subsets.py"],
}

# Reports about other people's code, each with the reason why it is none of ours.
SUPPRESSED = {
    "thread": """
# CPython is not built for ThreadSanitizer: the GIL's hand-overs are invisible to it, and so is
# everything they order.  No called_from_lib: where Python is a shared library, the locks of our
# pool are taken by libpython for us, and would be ignored too.
race:_Py
race:Py
race:take_gil
race:drop_gil
# OpenBLAS has a pool of its own, with its own barriers in assembly.  NumPy and SciPy may each bring
# one, so this is no called_from_lib: that ends the process if it matches two libraries.
race:libscipy_openblas
race:libopenblas
""",
    "valgrind": "",
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tool", choices=FLAGS)
    parser.add_argument(
        "--level", action="append", help="a CPU level; default: all that this machine has"
    )
    parser.add_argument(
        "--keep", type=Path, help="the folder to build in; built extensions in it are used again"
    )
    options, pytest = parser.parse_known_args()
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
        return run(options.tool, options.keep.resolve(), options.level, pytest)
    with tempfile.TemporaryDirectory() as folder:
        return run(options.tool, Path(folder), options.level, pytest)


def run(tool, folder, levels, pytest):
    tree = build(tool, folder)
    environment = os.environ | runtime(tool, folder) | {"PYTHONPATH": str(tree / "src")}
    failures = []
    for level in levels or supported(environment):
        command = [
            *prefix(tool, folder),
            sys.executable,
            "-m",
            "pytest",
            "-s",
            "-p",
            "no:cacheprovider",
            *(pytest or TESTS[tool]),
        ]
        print(f"+ {tool}, FASTDERIV_CPU={level}: {shlex.join(command)}", flush=True)
        code, reports = follow(
            command, tree, environment | {"FASTDERIV_CPU": level}, folder / f"{tool}-{level}.log"
        )
        print(f"{tool}, {level}: exit code {code}, {reports} reports", flush=True)
        if code or reports:
            failures.append(level)
    return int(bool(failures))


# ---- building ----------------------------------------------------------------------------------


def build(tool, folder):
    """A copy of the tree with extensions of its own."""
    tree = folder / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*NOT_SOURCE), dirs_exist_ok=True)
    compiler = folder / "cc"
    cc = os.environ.get("CC", "gcc")
    shared = (
        " -shared-libsan" if "clang" in cc and tool != "valgrind" else ""
    )  # as GCC does by itself
    compiler.write_text(
        COMPILER.format(cc=cc, flags=FLAGS[tool] + shared, dropped="|".join(DROPPED))
    )
    compiler.chmod(0o755)
    environment = os.environ | {"CC": str(compiler), "LDSHARED": f"{compiler} -shared"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=tree, check=True, env=environment)
    return tree


COMPILER = """#!/bin/bash
for flag; do
    shift
    case $flag in {dropped}) ;; *) set -- "$@" "$flag" ;; esac
done
exec {cc} "$@" {flags}
"""


# ---- running -----------------------------------------------------------------------------------


def runtime(tool, folder):
    """The environment in which an ordinary interpreter loads such extensions."""
    if tool == "valgrind":
        return {"PYTHONMALLOC": "malloc"}
    suppressions = folder / "suppressions"
    suppressions.write_text(SUPPRESSED.get(tool, ""))
    options = "halt_on_error=0:allocator_may_return_null=1:detect_leaks=0:symbolize=1"
    # GCC 13 and later detect uses of dead stack frames by default, and misalign what they move to
    # the heap for it (PR 110027): the offsets of a frame's objects suit a frame 32 bytes above a
    # multiple of 64, as the stack's are, but the heap's lie on the multiple, so that the aligned
    # stores of AVX-512, which GCC itself chooses, crash.
    options += ":detect_stack_use_after_return=0"
    return {
        "LD_PRELOAD": " ".join(library(name) for name in PRELOADED[tool]),
        "PYTHONMALLOC": "malloc",  # so that small objects have borders too
        "ASAN_OPTIONS": options,  # leaks: an interpreter leaves many behind
        "UBSAN_OPTIONS": "print_stacktrace=1",
        # die_after_fork: the children of the tests' forks start threads
        "TSAN_OPTIONS": "halt_on_error=0:history_size=4:report_signal_unsafe=0:die_after_fork=0:"
        f"suppressions={suppressions}",
    }


PRELOADED = {
    "address": ("asan", "stdc++"),
    "thread": ("tsan",),
}  # stdc++: else exceptions of PyTorch and others are lost


def library(name):
    """Where the compiler keeps a runtime library."""
    compiler = shlex.split(os.environ.get("CC", "gcc"))
    for file in f"libclang_rt.{name}-{platform.machine()}.so", f"lib{name}.so", f"lib{name}.so.6":
        path = subprocess.run(
            [*compiler, f"-print-file-name={file}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        if os.path.isabs(path):
            return path
    raise SystemExit(f"{shlex.join(compiler)} has no library {name}")


def prefix(tool, folder):
    if tool != "valgrind":
        return []
    options = "--quiet --error-limit=no --num-callers=30 --show-mismatched-frees=no"
    known = [f"--suppressions={path}" for path in PYTHON_SUPPRESSIONS if os.path.exists(path)]
    return ["valgrind", *options.split(), "--undef-value-errors=yes", *known]


PYTHON_SUPPRESSIONS = ("/usr/lib/valgrind/python3.supp",)


def supported(environment):
    code = "import fastderiv; print(*fastderiv.show_config()['CPU levels supported'])"
    clean = {k: v for k, v in environment.items() if k != "FASTDERIV_CPU"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean, check=True, capture_output=True, text=True
    )
    return done.stdout.split()


def follow(command, tree, environment, log):
    """Run the command, showing what it prints; its exit code, and how many reports there are."""
    reports = 0
    with open(log, "w", encoding="utf-8", errors="replace") as file:
        process = subprocess.Popen(command, cwd=tree, env=environment, text=True, errors="replace",
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        for line in process.stdout:
            sys.stdout.write(line)
            file.write(line)
            reports += bool(REPORTS.search(line))
        return process.wait(), reports


if __name__ == "__main__":
    sys.exit(main())
