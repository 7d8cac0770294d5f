"""The compiled modules; everything else about the project is in pyproject.toml.

A room's ``_kernels.pyx`` is translated to C once and compiled once per CPU level and real type,
each time under its own module name (``_kernels_f32_v3`` …).  ``fastderiv._core.dispatch`` picks
among them at import.

``FASTDERIV_DEBUG=1`` in the environment builds with symbols, with the kernels' assertions and with
Cython's checks of typed memoryviews; results have the same bits.
"""

import copy
import os
import re
import shutil
import sys
import sysconfig
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

DEBUG = os.environ.get("FASTDERIV_DEBUG", "0") not in ("", "0")
COMPILER = os.path.basename(os.environ.get("CC", "")).lower()
# clang-cl is Clang with cl's command line: it has vector types and levels, as Clang has elsewhere
CLANG_CL = sys.platform == "win32" and "clang-cl" in COMPILER
MSVC = sys.platform == "win32" and not CLANG_CL and "mingw" not in COMPILER
# what is built for, which need not be what builds
TARGETS = re.findall(r"-arch\s+(\S+)", os.environ.get("ARCHFLAGS", ""))
TARGETS = TARGETS or [sysconfig.get_platform()]
X86 = len(TARGETS) == 1 and TARGETS[0].endswith(("x86_64", "amd64"))

if CLANG_CL:
    FLAGS = ["/Od", "/Z7"] if DEBUG else ["/O2"]
    FLAGS += ["/clang:-fno-math-errno", "/clang:-ffp-contract=off"]
elif MSVC:
    FLAGS = ["/Od", "/Z7"] if DEBUG else ["/O2"]
    FLAGS += ["/fp:precise"]
else:
    FLAGS = ["-Og", "-g"] if DEBUG else ["-O2", "-g0"]
    FLAGS += ["-fno-math-errno", "-ffp-contract=off", "-fvisibility=hidden"]
    # What unwinds C++ exceptions, of which there are none, is 3 % of a module, and padding before
    # targets of jumps 2 %; loops are aligned.
    FLAGS += [] if DEBUG else ["-fno-asynchronous-unwind-tables", "-fno-align-jumps"]
if DEBUG:
    FLAGS += ["/UNDEBUG" if CLANG_CL or MSVC else "-UNDEBUG"]  # Python's own flags define it
# no symbols, and no page of padding between code and constants: 4 KiB less for each module
LINK = ["-Wl,-s", "-Wl,-z,noseparate-code"] if sys.platform == "linux" and not DEBUG else []
# tag in the module's name -> what the compiler is told; other CPUs and compilers get the one
# portable level
LEVELS = {"v1": []} if X86 and not MSVC else {"any": []}
if X86 and (sys.platform != "win32" or CLANG_CL):
    LEVELS |= {"v3": ["-march=x86-64-v3", "-DSIMD_FMA"], "v4": ["-march=x86-64-v4", "-DSIMD_FMA"]}
# room -> the real types its kernels serve
KERNELS = {
    "_core": ("f32", "f64"),
    "ssm": ("f32", "f64"),
    "subsets": ("f32", "f64"),
    "boundary": ("f64",),
    "nn": ("f32", "f64"),
    "optim": ("f32", "f64"),
}

SRC = Path("src/fastderiv")
# beside a room's own: what the compiler reads and Cython does not watch
HEADERS = [*(SRC / "_core").glob("*.h"), *(SRC / "_core").glob("*.pxd")]
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "initializedcheck": DEBUG,
    "wraparound": False,
    "cdivision": True,
    "binding": False,
    "embedsignature": False,
    "auto_pickle": False,
    "freethreading_compatible": True,
}


class build_levels(build_ext):
    """Translate every .pyx once, then compile it for each of its levels."""

    def build_extensions(self) -> None:
        from Cython.Build import cythonize  # late: an sdist needs no Cython and lists the .pyx
        from Cython.Compiler import Options

        if CLANG_CL:
            self.use_clang_cl()
        levels = [tag for tag, flags in LEVELS.items() if self.accepts(flags)]
        self.extensions = [e for e in self.extensions if e.level is None or e.level in levels]
        for extension in self.extensions:
            extension.define_macros.append(("FASTDERIV_LEVELS", '"' + " ".join(levels) + '"'))
        # Cython's directives differ, and it looks only at times to tell what to translate again
        out = os.path.join(self.build_temp, "cython-debug" if DEBUG else "cython")
        translated = {}
        for source, name in dict.fromkeys((e.sources[0], e.cython_name) for e in self.extensions):
            # those of doors are in _kernels.pyi, and nobody prints them
            Options.docstrings = not source.endswith("_kernels.pyx")
            module = cythonize(
                [Extension(name, [source])],
                build_dir=out,
                compiler_directives=DIRECTIVES,
                quiet=True,
                include_path=["src"],
            )
            translated[source] = module[0].sources[0]
        for extension in self.extensions:
            extension.sources = [translated[extension.sources[0]]]
        self.parallel = self.parallel or os.cpu_count()
        super().build_extensions()

    def use_clang_cl(self) -> None:
        """Put clang-cl in the place of cl, the only compiler that setuptools looks for.

        Its compiler class has set up include and library paths, which serve both.
        """
        self.compiler.initialize()
        self.compiler.cc = shutil.which(os.environ["CC"]) or os.environ["CC"]
        self.compiler.compile_options = [
            option for option in self.compiler.compile_options if option != "/GL"
        ]

    def accepts(self, flags: list[str]) -> bool:
        """Whether the compiler knows these flags: GCC before 11 has no -march=x86-64-v3."""
        if not flags:
            return True
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "empty.c"
            source.write_text("int empty;\n")
            try:
                self.compiler.compile([str(source)], output_dir=folder, extra_postargs=flags)
            except CompileError:
                print(f"the compiler refuses {' '.join(flags)}: this CPU level is left out")
                return False
        return True

    def build_extension(self, ext: Extension) -> None:
        one = copy.copy(self)  # an object directory of its own: same source, other flags
        one.build_temp = os.path.join(self.build_temp, ext.name)
        build_ext.build_extension(one, ext)


@cache
def flags_file() -> Path:
    """A file that is newer than modules compiled with other flags, which are compiled again."""
    path = Path("build") / "flags.txt"
    flags = " ".join([*FLAGS, *LINK])
    if not path.exists() or path.read_text() != flags:
        path.parent.mkdir(exist_ok=True)
        path.write_text(flags)
    return path


def extension(
    module: str,
    source: Path,
    flags: list[str],
    defines: list[tuple[str, str | None]],
    level: str | None = None,
) -> Extension:
    """A module of one source; `level` is the tag of the CPU level it is for, None for any."""
    leaf, name = source.stem, module.rpartition(".")[2]
    init = [] if name == leaf else [(f"PyInit_{leaf}", f"PyInit_{name}")]
    macros = [("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")]
    if not DEBUG:
        macros.append(("NDEBUG", None))
    ext = Extension(
        module,
        [str(source)],
        include_dirs=[str(source.parent), str(SRC / "_core"), np.get_include()],
        define_macros=[*macros, *init, *defines],
        depends=sorted(map(str, {*HEADERS, *source.parent.rglob("*.h"), flags_file()})),
        extra_compile_args=FLAGS + flags,
        extra_link_args=LINK,
    )
    ext.cython_name = ".".join(source.with_suffix("").parts[1:])
    ext.level = level
    return ext


def extensions() -> list[Extension]:
    built = [("FASTDERIV_FLAGS", f'"{" ".join(FLAGS)}"')]
    found = [
        extension("fastderiv._core.cache", SRC / "_core" / "cache.pyx", [], []),
        extension("fastderiv._core.cpu", SRC / "_core" / "cpu.pyx", [], built),
        extension("fastderiv._core.fpstate", SRC / "_core" / "fpstate.pyx", [], []),
        extension("fastderiv._core.plain", SRC / "_core" / "plain.pyx", [], []),
        extension("fastderiv._core.threads", SRC / "_core" / "threads.pyx", [], []),
    ]
    for room, reals in KERNELS.items():
        for real in reals:
            for level, flags in LEVELS.items():
                defines = [("SIMD_F64", None)] if real == "f64" else []
                module = f"fastderiv.{room}._kernels_{real}_{level}"
                found.append(extension(module, SRC / room / "_kernels.pyx", flags, defines, level))
    return found


setup(ext_modules=extensions(), cmdclass={"build_ext": build_levels})
