"""Examples are tests: every docstring's, and the README's."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import fastderiv

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
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


PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "bench" / "README.md",
]


def sources():
    """The files of the tree, but not what was built, and the environments that may lie in it."""
    yield from (path for path in ROOT.glob("*.*") if path.is_file())
    for folder in ("src", "tests", "bench", "examples", "docs"):
        yield from (path for path in (ROOT / folder).rglob("*.*") if path.is_file())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_named_files_exist(page):
    """`_scan.pxi`, `ssm/_scan.py`, tests/fuzz.py in backticks: wherever they are in the tree."""
    known = [path.as_posix() for path in sources()]
    named = re.findall(r"`([\w/.]*\w\.(?:pyx|pxi|pxd|pyi|py|h|md))`", page.read_text("utf-8"))
    for name in named:
        assert any(path.endswith(f"/{name}") for path in known), name


def test_names_in_the_map_are_where_it_says():
    """The page for those who change something: "`judge` in `boundary/_isolate.pxi`" is there."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    text = " ".join(text.split())
    found = re.findall(r"((?:`\w+`(?:,| and)? )+)in `([\w/]+\.\w+)`", text)
    assert len(found) > 9
    for names, file in found:
        paths = [path for path in sources() if path.as_posix().endswith(f"/{file}")]
        assert paths, file
        for name in re.findall(r"\w+", names.replace(" and ", " ")):
            assert any(re.search(rf"\b{name}\b", path.read_text("utf-8")) for path in paths), (
                name,
                file,
            )
