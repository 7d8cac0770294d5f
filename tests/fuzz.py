"""A fuzzer of the whole public interface: hostile calls, judged by contracts and references.

    python tests/fuzz.py --calls 10000 --seed 1 [--function selective_scan]
    python tests/fuzz.py --replay '{"function": …}'

Every call is made three times: as drawn, with ordinary arrays of the same values, and (where the
data are benign) by `fastderiv.reference`.  The calls run in a process of their own, which is
started again after a crash; what crashed it, and every other finding, is printed as the JSON of its
case, and crashes are added to the corpus file.
"""

import argparse
import contextlib
import faulthandler
import json
import mmap
import os
import pickle
import random
import re
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

import fastderiv as fd
import fuzz_arguments as fa
import fuzz_calls as fc
from fastderiv import reference
from helpers.machines import control_register

CORPUS = Path(__file__).with_name("fuzz_corpus.jsonl")
SILENCE = 120  # seconds after which a call counts as one that never ends
MEMORY = 6 << 30  # bytes of address space that a child may have
ERRORS = (TypeError, ValueError, OverflowError, MemoryError, IndexError)
SANITIZERS = r"runtime error:|ERROR: \w+Sanitizer|WARNING: ThreadSanitizer"
LARGE = 300_000  # numbers in a result; the references, loops in Python, would take minutes
TOLERANCE = {
    np.dtype("f4"): 2e-4,
    np.dtype("f8"): 1e-10,
}  # ten times the numerical contract, or more


class Finding(Exception):
    """What a call did that it must not."""


# ---- one case ------------------------------------------------------------------------------------


def judge(case):
    """Make the calls of a case; a Finding says what is wrong."""
    name, recipes = case["function"], case["arguments"]
    fd.set_num_threads(case["state"]["threads"])
    error, result = None, None
    try:
        built = fa.Built(recipes)
    except ValueError:
        if '"vast"' in json.dumps(recipes):
            return  # too many bytes for NumPy's own arrays
        raise
    try:
        with disturbed(case["state"]), contextlib.redirect_stdout(None):
            result = fc.call(fd, name, built.arguments)
    except BaseException as e:  # noqa: BLE001 (whatever it is, it is looked at)
        error = e
    look_at_memory(built, error)
    if error is not None:
        if case["lawful"]:
            raise Finding(f"a lawful call raised {type(error).__name__}: {error}") from error
        look_at_error(name, recipes, error)
        return
    arrays = flat(result)
    look_at_results(arrays, built)
    if not random_only(name, recipes):
        compare(case, arrays)


@contextlib.contextmanager
def disturbed(state):
    """The floating-point and error state of the case: no call may depend on it."""
    with warnings.catch_warnings(), np.errstate(all=state["errors"] or "warn"):
        warnings.simplefilter("error")
        with control_register(state["rounding"], state["flush"]):
            yield


def look_at_memory(built, error):
    for name, memory in built.memories.items():
        if memory.stray_writes():
            raise Finding(f"memory of {name} was written to")
        if memory.may_change and error is not None and name != "out" and memory.changed():
            raise Finding(
                f"{name} was changed by a call that raised {type(error).__name__}: {error}"
            ) from error


def look_at_error(name, recipes, error):
    if isinstance(error, fa.FuzzError) and any(
        r in json.dumps(recipes) for r in ('"raise"', '"reenter"')
    ):
        return
    if not isinstance(error, ERRORS):
        raise Finding(f"raised {type(error).__name__}: {error}") from error
    if isinstance(error, ValueError | TypeError) and not names_an_argument(
        name, recipes, str(error)
    ):
        raise Finding(f"no argument is named by {type(error).__name__}: {error}") from error


def names_an_argument(function, recipes, message):
    words = {re.sub(r"\d+$", "", name) for name in recipes} | {
        "cache",
        "state",
        "activation",
        "exponential sum",
    }
    return any(re.search(rf"\b{word}\b", message) for word in words)


def flat(result):
    """The arrays and numbers of nested results."""
    if result is None or isinstance(result, str):
        return []
    if isinstance(result, tuple | list):
        return [a for part in result for a in flat(part)]
    if isinstance(result, dict):
        return []
    for cls in type(result).__mro__:
        slots = getattr(cls, "__slots__", ())
        if (
            type(result).__module__.startswith("fastderiv")
            and not isinstance(result, np.ndarray)
            and cls is not object
        ):
            names = [
                s for s in ((slots,) if isinstance(slots, str) else slots) if not s.startswith("_")
            ] or vars(result)
            return [a for name in sorted(names) for a in flat(getattr(result, name))]
    return [result]


def look_at_results(arrays, built):
    for a in arrays:
        if not isinstance(a, np.ndarray) or isinstance(a, fa.Hostile | np.matrix | np.recarray):
            continue  # an argument that was updated in place is of its own class
        if type(a) is not np.ndarray:
            raise Finding(f"a result is a {type(a).__name__}")
        for name, memory in built.memories.items():
            if not memory.may_change and a.size and np.shares_memory(a, memory.raw):
                raise Finding(f"a result shares memory with {name}")


def random_only(name, recipes):
    """Whether another call with ordinary arrays means something else."""
    text = json.dumps(recipes)
    if any(
        isinstance(r, dict) and r.get("as") == "list" and 0 in r["shape"] for r in recipes.values()
    ):
        return True  # an empty list has no shape
    return any(
        word in text for word in ('"alias"', '"junk"', '"vast"', '"tamper": "', '"other"')
    ) or name in ("get_num_threads", "show_config")


def compare(case, arrays):
    """The same bits from ordinary arrays in one thread, and the reference's numbers."""
    name, recipes = case["function"], case["arguments"]
    fd.set_num_threads(1)
    plain = flat(fc.call(fd, name, fa.Built(recipes, plain=True).arguments))
    differ(
        arrays, plain, "bits differ from those of ordinary arrays in the default state", same_bits
    )
    large = sum(np.asarray(a).size for a in arrays) > LARGE
    if not (case["benign"] and case["lawful"]) or name not in COMPARED or large:
        return
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        expected = flat(
            fc.call(reference, name, wide(fa.Built(recipes, reference, plain=True).arguments))
        )
    differ(plain, expected, "the reference has other numbers", close)


COMPARED = set(fc.CALLS) - {
    "solve_x1",
    "find_x1",
    "decision_intervals",
    "counterfactuals",
    "nearest_tie",
    "tie_sensitivity",
    "trace_boundary",
    "follow_boundary",
    "Crossings",
    "DecisionIntervals",
    "ReversibleMomentum",
    "set_num_threads",
    "show_config",
    "get_num_threads",
    "iter_subset_sums",
}


def wide(value):
    """float32 arrays as float64, for the reference."""
    if isinstance(value, dict):
        return {k: wide(v) for k, v in value.items() if k != "out"}
    if isinstance(value, tuple | list):
        return type(value)(wide(v) for v in value)
    return value.astype("f8") if isinstance(value, np.ndarray) and value.dtype == "f4" else value


def differ(ours, theirs, message, agree):
    if len(ours) != len(theirs):
        raise Finding(f"{message}: {len(ours)} results, not {len(theirs)}")
    for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if not agree(a, b):
            raise Finding(f"{message}: result {k} is {shown(a)}, not {shown(b)}")


def shown(a):
    return re.sub(r"\s+", " ", repr(a))[:300]


def same_bits(a, b):
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype.newbyteorder("=") != b.dtype or a.shape != b.shape:
        return False
    a = a.astype(b.dtype)
    if a.dtype.kind != "f":
        return np.array_equal(a, b)
    nan = np.isnan(a)
    return np.array_equal(nan, np.isnan(b)) and a[~nan].tobytes() == b[~nan].tobytes()


def close(a, b):
    """Whether a result is within the contract, if the reference is finite and well scaled."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        return False
    if not a.size or a.dtype.kind != "f":
        return True
    scale = np.abs(b).max()
    with np.errstate(all="ignore"):
        if (
            not 1e-30 < scale < (1e30 if a.dtype.itemsize == 8 else 1e20)
        ):  # on the way it may have overflowed
            return True
        return bool(np.abs(a - b).max() <= TOLERANCE[a.dtype.newbyteorder("=")] * scale)


# ---- many cases, in a process that may die -------------------------------------------------------


def child(seed, functions, first, last, place):
    """Judge the cases `first` to `last`; the number of each goes to the file `place` beforehand."""
    faulthandler.enable()
    limit_memory()
    warnings.simplefilter("ignore")
    with open(place, "r+b") as f, mmap.mmap(f.fileno(), 8) as here:
        for i in range(first, last):
            here[:] = i.to_bytes(8, "little")
            case = drawn(seed, i, functions)
            told = told_of(case)
            if told:
                print(json.dumps([i, *shrunk(told, case)]), flush=True)
        here[:] = last.to_bytes(8, "little")


def told_of(case):
    """What is wrong with a case, or None."""
    try:
        judge(case)
    except Finding as finding:
        return str(finding)
    except MemoryError:  # of the limit set here; what was looked at before was as it must be
        return None
    except Exception as error:  # noqa: BLE001
        return f"the ordinary call or the reference raised {type(error).__name__}: {error}"


def shrunk(told, case):
    """The finding and a case with less in it that is found wrong in the same way."""
    for simpler in simpler_cases(case):
        now = told_of(simpler)
        if now and now[:40] == told[:40]:
            return shrunk(now, simpler)
    return told, case


def simpler_cases(case):
    """The case with one thing left out."""
    for key, plain in {"errors": None, "rounding": None, "flush": False, "threads": 1}.items():
        if case["state"][key] != plain:
            yield case | {"state": case["state"] | {key: plain}}
    for name, recipe in case["arguments"].items():
        rest = {k: v for k, v in case["arguments"].items() if k != name}
        if recipe is None:
            yield case | {"arguments": rest}
        elif isinstance(recipe, dict) and "shape" in recipe:
            for key in ("order", "steps", "offset", "swapped", "readonly", "as"):
                if recipe.get(key):
                    yield case | {
                        "arguments": rest | {name: {k: v for k, v in recipe.items() if k != key}}
                    }
            if name in OPTIONAL:
                yield case | {"arguments": rest | {name: None}}


OPTIONAL = (
    "D",
    "z",
    "b",
    "delta_bias",
    "dt_bias",
    "bias_ih",
    "bias_hh",
    "initial_state",
    "out",
    "dlast_state",
    "activation",
)


def limit_memory():
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        if "asan" not in os.environ.get("LD_PRELOAD", "") and "tsan" not in os.environ.get(
            "LD_PRELOAD", ""
        ):
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def drawn(seed, i, functions):
    """Case number `i`; slow functions come up less often."""
    choose = random.Random(f"{seed}/{i}")
    weights = [0.1 if name in fc.SLOW else 1.0 for name in functions]
    return fc.draw(choose.choices(functions, weights)[0], f"{seed}/{i}")


def fuzz(calls, seed, functions, found=print):
    """Judge so many cases; `found(what, case)` gets every finding.  Returns how many."""
    count, first = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "place"
        while first < calls:
            place.write_bytes(first.to_bytes(8, "little"))
            code, lines, trace = run_child(seed, functions, first, calls, place)
            for line in lines:
                _, what, case = json.loads(line)
                count += 1
                found(what, case)
            reports = [line for line in trace.splitlines() if re.search(SANITIZERS, line)]
            if reports:  # of tests/sanitize.py; which call it was is not known
                count += len(reports)
                found("\n".join(reports), {})
            first = int.from_bytes(place.read_bytes(), "little")
            if first < calls:
                count += 1
                found(
                    f"the process ended with code {code}: {trace[-1500:]}",
                    drawn(seed, first, functions),
                )
                first += 1
    return count


def run_child(seed, functions, first, last, place):
    """The child's exit code, what it found, and its last words."""
    command = [
        sys.executable,
        __file__,
        "--child",
        str(first),
        "--seed",
        str(seed),
        "--calls",
        str(last),
        "--place",
        str(place),
    ]
    for name in functions:
        command += ["--function", name]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, text=True)
        seen, since = -1, time.monotonic()
        while process.poll() is None:
            time.sleep(0.05)
            at = int.from_bytes(place.read_bytes(), "little")
            if at != seen:
                seen, since = at, time.monotonic()
            elif time.monotonic() - since > SILENCE:
                process.kill()
                process.wait()
        out.seek(0), err.seek(0)
        return process.returncode, [line for line in out if line.startswith("[")], err.read()


def survives(case):
    """None if a case, judged in a process of its own, is as it must be; else what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case"
        path.write_bytes(pickle.dumps(case))
        command = [sys.executable, __file__, "--case", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SILENCE)
    return None if done.returncode == 0 else done.stdout + done.stderr[-1500:]


def corpus():
    """The cases that once crashed or were wrong: (what it was, case)."""
    with CORPUS.open(encoding="utf-8") as f:
        return [json.loads(line) for line in f if line.strip()]


def report(what, case):
    print(f"{what}\n    {json.dumps(case)}", flush=True)
    if (
        what.startswith("the process ended") and "code -9" not in what
    ):  # that was killed, for its silence
        with CORPUS.open("a", encoding="utf-8") as f:
            f.write(json.dumps([what[:200], case]) + "\n")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--function", action="append", choices=sorted(fc.CALLS))
    parser.add_argument("--replay", help="the JSON of one case")
    for hidden in ("--child", "--place", "--case"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    functions = options.function or sorted(fc.CALLS)
    if options.child is not None:
        return child(options.seed, functions, int(options.child), options.calls, options.place)
    if options.replay or options.case:
        case = (
            json.loads(options.replay)
            if options.replay
            else pickle.loads(Path(options.case).read_bytes())
        )
        faulthandler.enable()
        limit_memory()
        told = told_of(case)
        print(told or "as it must be")
        return int(bool(told))
    seed = int(time.time()) if options.seed is None else options.seed
    began = time.monotonic()
    print(f"seed {seed}", flush=True)
    count = fuzz(options.calls, seed, functions, report)
    print(f"{options.calls} calls, {count} findings, {time.monotonic() - began:.0f} s")
    return int(bool(count))


if __name__ == "__main__":
    sys.exit(main())
