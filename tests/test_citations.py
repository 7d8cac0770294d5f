"""Citations of docs/*.md by section, and the table of sections, name only what exists."""

import inspect
import re
from pathlib import Path

import pytest

import fastderiv

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "fastderiv"
DOCS = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
CITING = sorted(
    path
    for folder in ("src", "tests", "bench", "examples", "docs")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".pyi", ".pyx", ".pxi", ".pxd", ".h", ".md"}
)
NUMBER = r"§\s?\d+(?:\.\d+)*(?:[–-]\d+(?:\.\d+)*)?"  # §4, §4.6 or §4.6–4.8
ROOMS = ("ssm", "subsets", "boundary", "nn", "optim")
ROW = re.compile(r"^\|(.*)\|$", re.MULTILINE)


def sections(page):
    """The numbers of a page's headings."""
    return set(re.findall(r"^#+ (\d+(?:\.\d+)*)\.? ", DOCS.get(page, ""), re.MULTILINE))


def citations(text):
    """(page or None, section) for every section that a text cites; None: by its number alone."""
    page = r"(?P<page>[a-z]+)(?:\.md)?"
    listed = rf"{NUMBER}(?:(?:,|,? and|,? or)\s+(?:#\s*)?{NUMBER})*"
    for match in re.finditer(rf"(?:\b{page}[,:]?\s+(?:#\s*)?)?(?P<listed>{listed})", text):
        name = match["page"] if match["page"] in DOCS else None
        for number in re.findall(r"\d+(?:\.\d+)*", match["listed"]):
            yield name, number


def rows(room):
    """The rows of a room's table: section (of the row above if empty), function, kernel, test."""
    text = DOCS["derivations"]
    start = re.search(rf"^### {room}, references in reference/[\w, .]+$", text, re.MULTILINE)
    assert start, f"docs/derivations.md has no table of {room}"
    table = text[start.end() :].partition("\n#")[0]
    section = ""
    for row in ROW.findall(table)[2:]:
        cells = [cell.strip().strip("`") for cell in row.split("|")]
        assert len(cells) == 4, row
        section = cells[0] or section
        yield section, *cells[1:]


def defines(path, name):
    """Whether a source file defines a function, method or class of this name."""
    if path.suffix == ".py":
        pattern = rf"^\s*(?:def|class) {name}\b"
    elif path.suffix == ".h":
        pattern = rf"\b{name}\("
    else:
        pattern = rf"^\s*(?:cdef|cpdef|def)\b[^\n(]*\b{name}\b"
    return re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE) is not None


@pytest.mark.parametrize("path", CITING, ids=lambda path: str(path.relative_to(ROOT)))
def test_cited_sections_exist(path):
    if path.name == Path(__file__).name:
        return
    known = {page: sections(page) for page in DOCS}
    for page, number in citations(path.read_text(encoding="utf-8")):
        own = path.stem if path.parent.name == "docs" and sections(path.stem) else None
        pages = [page or own] if page or own else DOCS
        assert any(number in known[name] for name in pages), f"{page or 'no page'} has a §{number}"


def test_citations_are_recognised():
    text = "docs/derivations.md §1.4, as derivations §3.1 and §5.1;\n# rounding.md §2: §4.6–4.8"
    found = [number for _, number in citations(text)]
    assert found == ["1.4", "3.1", "5.1", "2", "4.6", "4.8"]
    assert [name for name, _ in citations(text)][:3] == ["derivations"] * 3


@pytest.mark.parametrize("room", ROOMS)
def test_names_in_the_table_exist(room):
    known = sections("derivations")
    references = [*(SOURCE / "reference").glob("*.py")]
    tests = [path.read_text(encoding="utf-8") for path in ROOT.glob(f"tests/test_{room}*.py")]
    for section, function, kernel, test in rows(room):
        assert section in known
        if function:
            assert function in fastderiv.__all__
            assert any(defines(path, function) for path in references), f"no twin of {function}"
            public = inspect.getmodule(getattr(fastderiv, function)).__name__
            assert public.startswith(f"fastderiv.{room}."), f"{function} is in {public}"
        if kernel:
            file, name = kernel.split(":")
            files = [*(SOURCE / room).rglob(file)]
            assert len(files) == 1, f"one {file} in {room}"
            assert defines(files[0], name), f"{file} has {name}"
        if test:
            assert any(f"\ndef {test}(" in text for text in tests), f"tests of {room} have {test}"


def test_every_subsection_has_a_row():
    found = {section for room in ROOMS for section, *_ in rows(room)}
    assert found == {number for number in sections("derivations") if "." in number}


def test_every_public_function_has_a_row():
    found = {function for room in ROOMS for _, function, *_ in rows(room)}
    functions = {
        name
        for name in fastderiv.__all__
        if inspect.isfunction(getattr(fastderiv, name))
        and not inspect.getmodule(getattr(fastderiv, name)).__name__.startswith("fastderiv._core")
    }
    assert functions <= found, f"without a row: {sorted(functions - found)}"
