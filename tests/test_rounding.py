"""docs/rounding.md and what cites it: numbers of sections, names of tests and files."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "rounding.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^##+ (\d+(?:\.\d+)?)\.? ", PAGE, re.MULTILINE)
BOUNDARY = ROOT / "src" / "fastderiv" / "boundary"
TESTS = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*.py"))


def sources(*patterns):
    return [path for pattern in patterns for path in (ROOT / "src").rglob(pattern)]


def test_sections_are_numbered_without_gaps():
    chapters = [number for number in SECTIONS if "." not in number]
    assert chapters == [str(k + 1) for k in range(len(chapters))]
    for chapter in chapters:
        parts = [number for number in SECTIONS if number.startswith(chapter + ".")]
        assert parts == [f"{chapter}.{k + 1}" for k in range(len(parts))]


def test_every_cited_section_exists():
    cited = set()
    for path in sources("*.pyx", "*.pxi", "*.h", "*.py", "*.pyi"):
        text = path.read_text(encoding="utf-8")
        for numbers in re.findall(r"rounding\.md (§[\d.]*\d(?:(?:, | and |–)§?[\d.]*\d)*)", text):
            cited |= set(re.findall(r"\d+(?:\.\d+)?", numbers))
    assert cited and cited <= set(SECTIONS), cited - set(SECTIONS)
    inside = set(re.findall(r"(?<!derivations\.md )§(\d+(?:\.\d+)?)", PAGE))
    assert inside <= set(SECTIONS)


def test_every_test_that_is_named_exists():
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 30
    assert {name for name in named if f"def {name}(" not in TESTS} == set()


def test_every_file_that_is_named_exists():
    for pattern in re.findall(r"`boundary/(_\w+(?:\*)?\.pxi)`", PAGE):
        assert list(BOUNDARY.glob(pattern)), pattern
