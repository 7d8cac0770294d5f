"""A little of the fuzzer, and all that it ever crashed on; `python tests/fuzz.py --help` tells of
more.
"""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

import fastderiv as fd
import fuzz
import fuzz_calls


def findings(calls, seed, functions=None):
    found = []
    fuzz.fuzz(
        calls,
        seed,
        functions or sorted(fuzz_calls.CALLS),
        lambda what, case: found.append(f"{what}\n{json.dumps(case)}"),
    )
    return found


def test_every_public_name_is_fuzzed():
    assert fuzz_calls.CALLS.keys() | fuzz_calls.MADE.keys() == set(fd.__all__)
    assert set(fuzz_calls.MADE.values()) <= fuzz_calls.CALLS.keys()


def test_cases_are_the_same_for_the_same_seed():
    for name in fuzz_calls.CALLS:
        assert json.dumps(fuzz_calls.draw(name, "7/1")) == json.dumps(fuzz_calls.draw(name, "7/1"))


def test_a_few_hundred_calls_are_as_they_must_be():
    assert findings(500, seed=0) == []


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=f"{i} {case['function']}") for i, (_, case) in enumerate(fuzz.corpus())],
)
def test_what_once_failed_does_not(case):
    assert fuzz.survives(case) is None


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11, 2))
def test_twice_ten_thousand_calls_are_as_they_must_be(seed):
    with ThreadPoolExecutor(2) as two:  # the calls are made in processes of their own
        assert [*two.map(lambda s: findings(10_000, s), (seed, seed + 1))] == [[], []]


# ---- the fuzzer finds what is wrong --------------------------------------------------------------

ARRAY = {"shape": [3], "values": "normal", "seed": 1, "dtype": "f8"}
QUIET = {"errors": None, "rounding": None, "flush": False, "threads": 1}


def told(monkeypatch, wrong, **arguments):
    """What the judge says of a `subset_sums` that does something wrong."""
    monkeypatch.setattr(fd, "subset_sums", wrong)
    return fuzz.told_of(
        {
            "function": "subset_sums",
            "arguments": {"x": ARRAY} | arguments,
            "state": QUIET,
            "lawful": True,
            "benign": True,
        }
    )


right = fd.subset_sums


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x: right(x), None),
        (lambda x: right(x) * 1.0000001, "the reference has other numbers"),
        (lambda x: x.__setitem__(0, 0) or right(x), "memory of x was written to"),
        (lambda x: x.view(), "a result shares memory with x"),
        (lambda x: right(x)[::2] if x.base is None else right(x), "bits differ"),
        (lambda x: fd.selective_scan(x, x, x, x, x), "a lawful call raised ValueError"),
    ],
)
def test_the_judge_sees(monkeypatch, wrong, message):
    said = told(monkeypatch, wrong)
    assert said is None if message is None else said.startswith(message)


def test_errors_must_name_an_argument(monkeypatch):
    def raises(x):
        raise ValueError("something is wrong")

    monkeypatch.setattr(fd, "subset_sums", raises)
    case = {
        "function": "subset_sums",
        "arguments": {"x": ARRAY},
        "state": QUIET,
        "lawful": False,
        "benign": True,
    }
    assert fuzz.told_of(case).startswith("no argument is named by ValueError")


def test_a_crash_is_survived_and_told(monkeypatch):
    """The process of the calls dies at the second one; the others are made all the same."""
    calls = []

    def dies(seed, functions, first, last, place):
        calls.append(first)
        place.write_bytes((1 if first == 0 else last).to_bytes(8, "little"))
        return (-11, [], "Segmentation fault") if first == 0 else (0, [], "")

    monkeypatch.setattr(fuzz, "run_child", dies)
    found = findings(5, seed=3)
    assert calls == [0, 2] and len(found) == 1 and "code -11: Segmentation fault" in found[0]
