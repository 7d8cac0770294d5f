"""Examples are tests: every docstring's, and the README's."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import fastderiv

README = Path(__file__).parents[1] / "README.md"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def modules():
    """Names of the package's Python modules, without kernels, and __main__, which would run."""
    for module in pkgutil.walk_packages(fastderiv.__path__, "fastderiv."):
        if not re.search(r"\._kernels_|\.__main__$", module.name):
            yield module.name


def blocks():
    """The README's fenced python blocks, each with the line it starts on."""
    text = README.read_text(encoding="utf-8")
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield pytest.param(match[1], id=f"line {text[: match.start()].count(chr(10)) + 1}")


@pytest.mark.parametrize("name", ["fastderiv", *modules()])
def test_docstring_examples(name):
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        if error.name is None or error.name.startswith("fastderiv"):
            raise
        pytest.skip(f"needs {error.name}")
    results = doctest.testmod(module, optionflags=FLAGS)
    assert results.failed == 0


@pytest.mark.parametrize("code", list(blocks()))  # skipped by pytest while there is none
def test_readme_block(code):
    if ">>>" in code:
        test = doctest.DocTestParser().get_doctest(code, {}, README.name, str(README), 0)
        assert doctest.DocTestRunner(optionflags=FLAGS).run(test).failed == 0
    else:
        exec(compile(code, README.name, "exec"), {"__name__": "readme"})  # noqa: S102 (ours)


def test_readme_has_the_two_commands():
    text = README.read_text(encoding="utf-8")
    lines = [
        line
        for block in re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ]
    assert sum("-m fastderiv" in line and "venv" in line for line in lines) == 1
    assert sum("pytest" in line and "venv" in line for line in lines) == 1
