"""Cython sources read as text: what a file defines, what it uses, and which functions it has.

The parser knows the Cython that this project writes, not all of Cython.
"""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

_STRING = (
    r'"""(?:\\.|[^\\])*?"""'
    r"|'''(?:\\.|[^\\])*?'''"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'(?:\\.|[^'\\\n])*'"
)
_STRING_OR_COMMENT = re.compile(
    rf"(?P<prefix>\b[rbfuRBFU]{{1,2}}(?=[\"']))?(?P<string>{_STRING})|(?P<comment>\#[^\n]*)",
    re.DOTALL,
)
_NAME = re.compile(r"(?<![\w.])[A-Za-z_]\w*")
_HEADER = re.compile(r"^(?:cdef|cpdef|def)\b.*?\b(\w+)\s*\(")
_NO_FUNCTION = ("struct", "enum", "union", "class", "extern")


@dataclass(frozen=True)
class Line:
    """A logical line: brackets are closed, comments gone, and strings empty."""

    number: int
    indent: int
    text: str


@dataclass(frozen=True)
class Function:
    name: str
    parameters: list[str]
    python: bool  # a `def`
    number: int
    owner: str = ""  # the class whose method it is


@dataclass
class Block:
    """A statement at the left margin and everything indented below it."""

    lines: list[Line]
    defines: set[str] = field(default_factory=set)
    uses: set[str] = field(default_factory=set)


def without_strings(text: str) -> str:
    """The code without comments, and with the expressions of f-strings in place of strings."""

    def emptied(match: re.Match) -> str:
        if match["comment"]:
            return ""
        inside = match["string"]
        kept = ""
        if "f" in (match["prefix"] or "").lower():
            kept = " + ".join(["", *(f"({e})" for e in re.findall(r"\{([^{}!:]+)", inside))])
        return '""' + kept + "\n" * inside.count("\n")

    return _STRING_OR_COMMENT.sub(emptied, text)


def logical_lines(text: str) -> list[Line]:
    lines: list[Line] = []
    number, kept = 0, ""
    for at, line in enumerate(without_strings(text).splitlines(), start=1):
        if not kept:
            number = at
        kept = f"{kept} {line.strip()}" if kept else line.rstrip()
        if kept.endswith("\\"):
            kept = kept[:-1]
        elif _depth(kept) <= 0:
            if kept.strip():
                indent = len(kept) - len(kept.lstrip())
                lines.append(Line(number, indent, kept.strip().rstrip(";")))
            kept = ""
    return lines


def _depth(text: str) -> int:
    return sum(text.count(c) for c in "([{") - sum(text.count(c) for c in ")]}")


def split_commas(text: str) -> list[str]:
    """The parts between commas that no bracket encloses."""
    parts, start = [], 0
    for at, c in enumerate(text):
        if c == "," and _depth(text[start:at]) == 0:
            parts.append(text[start:at])
            start = at + 1
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


def _enclosed(text: str) -> str:
    """What the first pair of parentheses encloses."""
    start = text.index("(")
    for end in range(start + 1, len(text) + 1):
        if _depth(text[start:end]) == 0:
            return text[start + 1 : end - 1]
    raise ValueError(f"a parenthesis stays open in {text}")


def _declared(text: str) -> str:
    """The name that a declaration such as `const real *x[4]` or `void (*f)(int)` declares."""
    text = re.split(r"(?<![=<>!])=(?!=)", text)[0]
    text = re.sub(r"\b(not|or) None\b", "", text)
    pointer = re.search(r"\(\s*\*+\s*(\w+)", text)
    if pointer:
        return pointer[1]
    while "[" in text:
        shorter = re.sub(r"\[[^\[\]]*\]", " ", text)
        if shorter == text:
            break
        text = shorter
    if "(" in text:  # a function's declaration
        text = text[: text.index("(")]
    names = re.findall(r"[A-Za-z_]\w*", text)
    return names[-1] if names else ""


def function_of(line: Line) -> Function | None:
    """The function that a line opens or declares, if it does."""
    header = _HEADER.match(line.text)
    words = line.text.split()
    if not header or words[1].rstrip(":") in _NO_FUNCTION or "(*" in line.text.split(")")[0]:
        return None
    if "=" in line.text[: header.end()]:  # cdef int x = f(…)
        return None
    rest = line.text[header.end() - 1 :]
    parameters = [_declared(p.lstrip("*")) for p in split_commas(_enclosed(rest)) if p != "void"]
    parameters = [p for p in parameters if p]
    return Function(header[1], parameters, words[0] == "def", line.number)


def blocks(text: str) -> list[Block]:
    found: list[Block] = []
    for line in logical_lines(text):
        if line.indent == 0 or not found:
            found.append(Block([line]))
        else:
            found[-1].lines.append(line)
    for block in found:
        block.defines = _defined(block)
        block.uses = _used(block)
    return found


def _defined(block: Block) -> set[str]:
    """The names that a block gives to the module."""
    first, *rest = block.lines
    words = first.text.rstrip(":").split()
    if is_import(first) or words[0] in ("include", "if", "for", "try", "with"):
        return set()
    if "extern" in words:
        return set().union(*(_declarations(part) for part in _parts(rest)))
    return _declarations(block.lines)


def _parts(lines: list[Line]) -> list[list[Line]]:
    """Lines cut before each one that is indented least."""
    parts: list[list[Line]] = []
    for line in lines:
        if line.indent == min(one.indent for one in lines):
            parts.append([line])
        else:
            parts[-1].append(line)
    return parts


def _declarations(lines: list[Line]) -> set[str]:
    text = lines[0].text
    head, _, tail = text.partition(":")
    words = head.split()
    if "enum" in words:
        members = [tail, *(line.text for line in lines[1:])]
        named = {_declared(m) for line in members for m in split_commas(line) if m != "pass"}
        return named | ({words[-1]} - {"enum"})
    if words[0] == "class" or any(w in words[:3] for w in ("struct", "union", "class")):
        return {re.split(r"\W", text.split()[_kind_at(words) + 1])[0]}
    function = function_of(lines[0])
    if function:
        return {function.name}
    if words[0] == "@cython" or text.startswith("@"):
        return set()
    if words[0] in ("cdef", "ctypedef", "cpdef"):
        return {_declared(part) for part in split_commas(text)}
    if "(" in text and "=" not in text.split("(")[0]:  # in extern blocks: `double now() nogil`
        return {_declared(re.sub(r"\".*?\"", "", text))}
    if re.match(r"[\w, ]+=(?!=)", text):
        return set(re.findall(r"\w+", text.split("=")[0]))
    if re.fullmatch(r"[\w\s*,\[\]\"]+", text) and len(words) > 1:  # extern `const real LOG2E`
        return {_declared(part) for part in split_commas(text)}
    return set()


def _kind_at(words: list[str]) -> int:
    return next(i for i, w in enumerate(words) if w in ("struct", "union", "class"))


def _used(block: Block) -> set[str]:
    """The names that a block takes from elsewhere in the module, or from Python."""
    first = block.lines[0]
    if is_import(first) or first.text.startswith("include"):
        return set()
    is_type = "struct" in first.text.split()[:3] or "extern" in first.text.split()[:2]
    names: set[str] = set()
    local: set[str] = set()
    for line in block.lines:
        text = re.sub(r"(?<=[(,])(\s*)\w+\s*=(?!=)", r"\1", line.text)  # keyword arguments
        names |= set(_NAME.findall(text))
        local |= _locals(line)
        if is_type and line is not first:
            local |= _declared_in(line.text)
    return names - local - block.defines


def _declared_in(text: str) -> set[str]:
    """The names of a declaration in a struct or an extern block, those of parameters included."""
    names = {_declared(part) for part in split_commas(text)}
    if "(" in text and "(*" not in text:
        names |= {_declared(part) for part in split_commas(_enclosed(text))}
    return names


def _locals(line: Line) -> set[str]:
    """The names that a line inside a function makes local."""
    found: set[str] = set()
    function = function_of(line)
    if function:
        found |= set(function.parameters)
    elif line.indent and line.text.startswith("cdef "):
        found |= {_declared(part) for part in split_commas(line.text)}
    elif line.indent:
        for loop in re.finditer(r"\bfor\s+([\w\s,()]+?)\s+in\b", line.text):
            found |= set(re.findall(r"\w+", loop[1]))
        for alias in re.finditer(r"\bas\s+(\w+)", line.text):
            found.add(alias[1])
        targets = re.split(r"(?<![=<>!+\-*/|&^%])=(?!=)", line.text)[:-1]
        for target in targets:
            found |= {t.strip("() ") for t in split_commas(target)}
    return {name for name in found if name.isidentifier()}


def is_import(line: Line) -> bool:
    return bool(re.match(r"(from\s+\S+\s+)?c?import\b", line.text))


def imports(text: str) -> list[tuple[str, list[str]]]:
    """The modules that a file imports or cimports, each with the names it takes from it."""
    found = []
    for line in logical_lines(text):
        taken = re.match(r"from\s+(\S+)\s+c?import\s+(.*)", line.text)
        if taken:
            parts = split_commas(taken[2].strip("() "))
            found.append((taken[1], [part.split()[0] for part in parts]))
        elif is_import(line):
            parts = split_commas(re.sub(r"^c?import", "", line.text))
            found += [(part.split()[0], []) for part in parts]
    return found


def functions(text: str) -> list[Function]:
    found, owner = [], ""
    for line in logical_lines(text):
        if not line.indent:
            opened = re.match(r"(?:cdef )?class (\w+)", line.text)
            owner = opened[1] if opened else ""
        function = function_of(line)
        if function:
            found.append(replace(function, owner=owner))
    return found


def includes(text: str) -> list[tuple[int, str]]:
    """Line number and file of each `include`."""
    found = re.finditer(r"^include\s+[\"']([^\"']+)[\"']", text, re.MULTILINE)
    return [(text.count("\n", 0, one.start()) + 1, one[1]) for one in found]


def verbatim_c(text: str) -> list[str]:
    """The C code in strings of `cdef extern from *` blocks."""
    opening = r"^cdef extern from [^\n]*:\s*\n\s*"
    return [
        one[1][3:-3]
        for one in re.finditer(opening + rf"({_STRING})", text, re.MULTILINE | re.DOTALL)
    ]


def needs(path: Path) -> dict[str, set[str]]:
    """What the `# needs:` lines of a file say: names by the file that they come from."""
    said: dict[str, set[str]] = {}
    inside = False
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            if line.strip():
                break
            continue
        inside = line.startswith("# needs:") or (inside and line.startswith("#   "))
        if inside:
            said.setdefault("", set())
            said[""] |= set(re.findall(r"\w+", line.partition("(")[0].removeprefix("# needs:")))
            source = re.search(r"\((\S+)\)", line)
            if source:
                said.setdefault(source[1], set())
                said[source[1]] |= said.pop("")
    said.pop("", None)
    return said
