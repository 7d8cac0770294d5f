"""The house rules that a reader relies on: imports, what kernel files say, how long they are.

``python tests/test_architecture.py ROOM`` prints the `# needs:` lines of the room's files as they
should be; with ``--write`` it puts them in place of those that are there.
"""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

from helpers import cython_source

TREE = Path(__file__).resolve().parents[1]
ROOT = TREE / "src" / "fastderiv"
BELOW = {
    "_core": set(),
    "subsets": {"_core"},
    "ssm": {"_core", "subsets"},
    "boundary": {"_core", "subsets"},
    "nn": {"_core", "subsets"},
    "optim": {"_core"},
    "reference": set(),
}
ROOMS = [room for room in BELOW if room != "reference"]
KERNEL_FILES = (".pyx", ".pxi", ".h")
MOST_LINES, MOST_PARAMETERS, WIDTH = 400, 8, 100


def judge(room, rule, wrong):
    """Fail with all that breaks the rule in this room."""
    assert not wrong, f"{rule} in {room}:\n" + "\n".join(map(str, wrong))


def read(path):
    return path.read_text(encoding="utf-8")


def sources(room, *suffixes):
    found = [path for path in (ROOT / room).rglob("*") if path.suffix in suffixes]
    return sorted(path for path in found if "__pycache__" not in path.parts)


@cache
def tree(path):
    return ast.parse(read(path))


@cache
def blocks(path):
    return cython_source.blocks(read(path))


def python_imports(path):
    """Absolute names of the modules that a Python file imports, with the names taken from each."""
    package = ["fastderiv", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            yield module, [alias.name for alias in node.names]


def cython_imports(path):
    """The same of a Cython file."""
    package = ["fastderiv", *path.relative_to(ROOT).parent.parts]
    for module, names in cython_source.imports(read(path)):
        dots = len(module) - len(module.lstrip("."))
        above = package[: len(package) - dots + 1] if dots else []
        yield ".".join([*above, *filter(None, [module.lstrip(".")])]), names


def all_imports(room):
    for path in sources(room, ".py", ".pyi"):
        yield path, list(python_imports(path))
    for path in sources(room, ".pyx", ".pxi", ".pxd"):
        yield path, list(cython_imports(path))


def rooms_of(module, names):
    """The rooms of fastderiv that an import takes from; "fastderiv" for the package itself."""
    parts = module.split(".")
    if parts[0] != "fastderiv":
        return set()
    if len(parts) > 1:
        return {parts[1]}
    return {name if (ROOT / name).is_dir() else "fastderiv" for name in names or ["__init__"]}


# ---- who may import whom -----------------------------------------------------------------------


@pytest.mark.parametrize("room", BELOW)
def test_rooms_import_only_downward(room):
    wrong = []
    for path, found in all_imports(room):
        for module, names in found:
            above = rooms_of(module, names) - BELOW[room] - {room}
            wrong += [f"{path}: {module} is of {one}" for one in above]
    judge(room, "imports downward", wrong)


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_include_files_of_their_own_and_of_the_core(room):
    wrong = []
    for path in sources(room, ".pyx", ".pxi", ".pxd", ".h"):
        text = read(path)
        named = [name for _, name in cython_source.includes(text)]
        named += re.findall(r"#\s*include\s+\"([^\"]+)\"", text)
        named += re.findall(r"^cdef extern from \"([^\"<>]+)\"", text, re.MULTILINE)
        system = ("Python.h", "pythread.h", "numpy/")
        for name in named:
            places = (path.parent, ROOT / room, ROOT / "_core")
            there = any((place / name).is_file() for place in places)
            if ".." in name or not (there or name.startswith(system)):
                wrong.append(f"{path} includes {name}")
    judge(room, "includes", wrong)


def test_reference_imports_nothing_compiled():
    libraries = {"__future__", "numpy", "scipy", "collections", "typing", "fractions"}
    libraries |= {"itertools", "math", "warnings"}
    for path in sources("reference", ".py"):
        for module, _ in python_imports(path):
            ours = module == "fastderiv.reference" or module.startswith("fastderiv.reference.")
            assert ours or module.split(".")[0] in libraries, f"{path} imports {module}"


def test_nothing_imports_the_integrations():
    for path in ROOT.rglob("*.py"):
        if "integrations" not in path.relative_to(ROOT).parts:
            for module, names in python_imports(path):
                assert "integrations" not in rooms_of(module, names), f"{path} imports {module}"


@pytest.mark.parametrize("room", [*BELOW, "integrations"])
def test_every_room_says_what_it_is(room):
    assert ast.get_docstring(tree(ROOT / room / "__init__.py"))


def private(name):
    return name.startswith("_") and not name.startswith("__")


@cache
def private_names_defined(room):
    """Private names that a room gives to its functions, classes, attributes and fields."""
    names = set()
    for path in sources(room, ".py"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):  # __slots__
                names.add(node.value)
    return set(filter(private, names))


@pytest.mark.parametrize("room", [*BELOW, "integrations", "_cli", "data"])
def test_no_room_uses_private_names_of_another(room):
    """Private modules, functions and attributes; an attribute is its own if the room defines it."""
    wrong = []
    for path, found in all_imports(room):
        for module, names in found:
            if module.split(".")[0] == "fastderiv" and rooms_of(module, names) - {room}:
                path_of = module.split(".")[2:] if module.count(".") else []
                hidden = [name for name in [*path_of, *names] if private(name) and name != "_core"]
                wrong += [f"{path}: {name} of {module}" for name in hidden]
    of_named_tuples = {"_fields", "_replace", "_asdict", "_make", "_field_defaults"}
    others = {*BELOW, "integrations", "_cli", "data"} - {room}
    foreign = set().union(*map(private_names_defined, others))
    foreign -= private_names_defined(room) | of_named_tuples
    for path in sources(room, ".py"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute) and node.attr in foreign:
                wrong.append(f"{path}:{node.lineno} uses {ast.unparse(node)}")
    judge(room, "private names", wrong)


# ---- kernel files ------------------------------------------------------------------------------


def included(room):
    """The `.pxi` files of a room in include order, each with the line of `_kernels.pyx`."""
    door = ROOT / room / "_kernels.pyx"
    return [(line, ROOT / room / name) for line, name in cython_source.includes(read(door))]


def expected_needs(room):
    """By `.pxi` file: names used from other files of the room, by provider in include order.

    Also what is wrong with the order: names that come from a file included later.
    """
    order = included(room)
    door = ROOT / room / "_kernels.pyx"
    home, at = {}, {}
    for path in [door, *(path for _, path in order)]:
        for block in blocks(path):
            home |= dict.fromkeys(block.defines, path)
            at |= dict.fromkeys(block.defines, block.lines[0].number)
    for _, names in cython_source.imports(read(door)):
        for name in names:
            home.pop(name, None)
    files = [door, *(path for _, path in order)]
    named = {path: path.relative_to(ROOT / room).as_posix() for path in files}
    needed, wrong = {}, []
    for line, path in order:
        names = set().union(*(block.uses for block in blocks(path)))
        by_file = defaultdict(set)
        for name in sorted(names & home.keys()):
            source = home[name]
            if source != path:
                by_file[source].add(name)
                late = at[name] > line if source == door else order_of(files, source, path)
                if late:
                    wrong.append(f"{path} uses {name}, which {source.name} defines only below")
        needed[path] = {named[file]: by_file[file] for file in files if file in by_file}
    return needed, wrong


def order_of(files, source, path):
    return files.index(source) > files.index(path)


def needs_lines(needed):
    """The `# needs:` lines as they stand in a file."""
    lines = []
    for source, names in needed.items():
        line = "# needs:"
        for name in sorted(names, key=lambda one: (one.lower(), one)):
            mark = f" ({source})" if name == max(names, key=lambda one: (one.lower(), one)) else ","
            if len(line) + len(name) + len(mark) + 1 > WIDTH:
                lines.append(line)
                line = "#       "
            line += f" {name}{mark}"
        lines.append(line)
    return lines


def needs_in(path):
    return [line for line in read(path).splitlines() if re.match(r"# needs:|#        \S", line)]


@pytest.mark.parametrize("room", ROOMS)
def test_included_files_say_what_they_need(room):
    """Textual includes see nothing but what stands above them, so each says what that must be."""
    needed, wrong = expected_needs(room)
    for path, names in needed.items():
        if cython_source.needs(path) != names:
            wrong.append(f"{path} should say (python tests/test_architecture.py {room} --write):")
            wrong += needs_lines(names)
    judge(room, "needs", wrong)


@pytest.mark.parametrize("room", ROOMS)
def test_the_door_includes_every_file_once(room):
    order = [path for _, path in included(room)]
    wrong = [] if len(order) == len(set(order)) else [f"included twice: {order}"]
    wrong += [f"nobody includes {p}" for p in sources(room, ".pxi") if p not in order]
    wrong += [f"{p} includes" for p in sources(room, ".pxi") if cython_source.includes(read(p))]
    judge(room, "include order", wrong)


@pytest.mark.parametrize("room", ROOMS)
def test_kernel_files_are_short(room):
    sizes = {path: len(read(path).splitlines()) for path in sources(room, *KERNEL_FILES)}
    wrong = [f"{path} has {size} lines" for path, size in sizes.items() if size > MOST_LINES]
    judge(room, "lines", wrong)


@pytest.mark.parametrize("room", ROOMS)
def test_kernels_have_few_parameters(room):
    """What travels together is a struct.  A `def`, called by keywords, may have more."""
    wrong = []
    for path in sources(room, ".pyx", ".pxi", ".pxd"):
        for function in cython_source.functions(read(path)):
            if not function.python and len(function.parameters) > MOST_PARAMETERS:
                many = f"{len(function.parameters)} parameters"
                wrong.append(f"{path}:{function.number} {function.name} has {many}")
    judge(room, "parameters", wrong)


@pytest.mark.parametrize("room", ROOMS)
def test_no_c_code_in_strings(room):
    """Declarations and preprocessor lines may stand in `cdef extern from *`; code is in headers."""
    wrong = []
    for path in sources(room, ".pyx", ".pxi", ".pxd"):
        for code in cython_source.verbatim_c(read(path)):
            code = re.sub(r"/\*.*?\*/", "", code, flags=re.DOTALL)
            lines = [line.strip() for line in code.splitlines() if line.strip()]
            if any(not line.startswith("#") and ("{" in line or line[-1] != ";") for line in lines):
                wrong.append(f"{path} has {len(lines)} lines of C in a string")
    judge(room, "C in strings", wrong)


@pytest.mark.parametrize("room", ROOMS)
def test_the_stub_of_a_room_is_its_door(room):
    """`_kernels.pyi` declares every `def` of `_kernels.pyx`, with the same parameters.

    Those outside of classes are methods of its Protocol `Kernels`.
    """
    doors = [ROOT / room / "_kernels.pyx", *(path for _, path in included(room))]
    compiled = {
        (function.owner, function.name.replace("__cinit__", "__init__")): function.parameters
        for path in doors
        for function in cython_source.functions(read(path))
        if function.python
    }
    stub = ROOT / room / "_kernels.pyi"
    declared = {}
    if stub.is_file():
        for node in tree(stub).body:
            if isinstance(node, ast.ClassDef):
                owner = "" if node.name == "Kernels" else node.name
                for method in node.body:
                    if isinstance(method, ast.FunctionDef):
                        a = method.args
                        names = [p.arg for p in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
                        declared[owner, method.name] = names if owner else names[1:]
    wrong = [
        f"{'.'.join(name)}: compiled {compiled.get(name)}, declared {declared.get(name)}"
        for name in sorted(compiled.keys() | declared.keys())
        if compiled.get(name) != declared.get(name)
    ]
    judge(room, "stub", wrong)


SOURCE = """
from fastderiv._core.simd cimport vf, vload

cdef extern from "loops.h" nogil:
    enum: WIDE, TALL
    void tile(const real *a, ix step)

ctypedef enum Curve:
    EXP, TANH

cdef struct Loop:
    Tile *tile[TALL]
    ix n


cdef inline void advance(const Loop *loop, void (*f)(ix), ix n=WIDE) noexcept nogil:
    \"\"\"Uses nothing of `unused`.\"\"\"
    cdef ix unused = helper(n)                      # and not `comment`
    tile(loop.other, step=unused)


def door(cnp.ndarray x not None, bint flag):
    text = f"{named} but not unnamed"
"""


def test_the_parser_tells_what_sources_define_and_use():
    found = cython_source.blocks(SOURCE)
    defined = set().union(*(block.defines for block in found))
    assert defined == {"WIDE", "TALL", "tile", "Curve", "EXP", "TANH", "Loop", "advance", "door"}
    used = set().union(*(block.uses for block in found))
    assert {"Tile", "TALL", "WIDE", "helper", "tile", "named", "Loop"} <= used
    assert not used & {"unused", "comment", "other", "step", "unnamed", "but", "n", "loop", "text"}
    functions = {function.name: function.parameters for function in cython_source.functions(SOURCE)}
    assert functions["advance"] == ["loop", "f", "n"] and functions["door"] == ["x", "flag"]


# ---- how the text looks ------------------------------------------------------------------------

TEXT = (".py", ".pyi", ".pyx", ".pxi", ".pxd", ".h", ".c", ".md", ".toml", ".yml", ".yaml", ".in")
TEXT += (".cff", ".sh", ".cfg")
PLACES = [*BELOW, "integrations", "_cli", "data", "docs", "tests", "bench", "examples", "other"]


def tracked():
    """The files that git tracks; in an sdist, all."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=TREE, capture_output=True, text=True, check=False
    )
    if listed.returncode == 0 and listed.stdout:
        return [TREE / name for name in listed.stdout.split("\0") if name]
    apart = {"build", "dist", ".venv"}
    return [path for path in TREE.rglob("*") if path.is_file() and not set(path.parts) & apart]


def place(path):
    """The room, or the folder at the root, that a file is in."""
    for base in (ROOT, TREE):
        if path.is_relative_to(base):
            part = path.relative_to(base).parts[0]
            if part in PLACES:
                return part
    return "other"


@pytest.mark.parametrize("where", PLACES)
def test_lines_end_at_column_100(where):
    wrong = []
    for path in tracked():
        if place(path) != where or not path.is_file():
            continue
        if path.suffix in TEXT or path.parent.name == ".ci":
            for number, line in enumerate(read(path).splitlines(), start=1):
                if len(line) > WIDTH:
                    wrong.append(f"{path}:{number} has {len(line)} columns")
    judge(where, "columns", wrong)


def write_needs(path, lines):
    """Replace the `# needs:` lines of a file, or put them behind its opening comment."""
    text = read(path).splitlines()
    old = set(needs_in(path))
    kept = [line for line in text if line not in old]
    opening = next((i for i, line in enumerate(kept) if not line.startswith("#")), len(kept))
    path.write_text("\n".join([*kept[:opening], *lines, *kept[opening:]]) + "\n", encoding="utf-8")


def main(arguments):
    for room in [one for one in arguments if not one.startswith("-")] or ROOMS:
        needed, wrong = expected_needs(room)
        for path, names in needed.items():
            print(path.relative_to(ROOT), *needs_lines(names), "", sep="\n")
            if "--write" in arguments:
                write_needs(path, needs_lines(names))
        print(*wrong, sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
