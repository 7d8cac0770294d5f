"""Lines of tracked text files end at column 100: python .ci/width.py [FILES]."""

import subprocess
import sys
from pathlib import Path

SUFFIXES = {
    ".py",
    ".pyi",
    ".pyx",
    ".pxd",
    ".pxi",
    ".h",
    ".c",
    ".md",
    ".toml",
    ".yml",
    ".yaml",
    ".cff",
}
NAMES = {"run", "lint", "MANIFEST.in"}


def main(files: list[str]) -> int:
    """Name every line that is too long; 1 if there is one."""
    tracked = subprocess.run(["git", "ls-files"], check=True, capture_output=True, text=True)
    wide = 0
    for file in files or tracked.stdout.splitlines():
        path = Path(file)
        if path.suffix not in SUFFIXES and path.name not in NAMES:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if len(line) > 100:
                wide += 1
                print(f"{file}:{number}: {len(line)} columns")
    return wide > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
