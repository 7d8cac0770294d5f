"""What `importlib.metadata` is told about the packages that fastderiv stands in for."""

from __future__ import annotations

import os
import re
from importlib.metadata import Distribution
from pathlib import Path

# The interfaces are those of these versions; the local part says whose packages they are.
VERSIONS = {"mamba_ssm": "2.3.2+fastderiv", "causal_conv1d": "1.6.0+fastderiv"}


class Ours(Distribution):
    """One of our packages, as if it were installed."""

    def __init__(self, module: str) -> None:
        self.module = module  # its name where it is imported

    def read_text(self, filename: str) -> str | None:
        """The files of a .dist-info folder that have something to say."""
        files = {
            "METADATA": f"Metadata-Version: 2.1\nName: {self.module}\n"
            f"Version: {VERSIONS[self.module]}\n"
            "Summary: The interface of this package on a CPU, by fastderiv\n",
            "top_level.txt": f"{self.module}\n",
        }
        return files.get(filename)

    def locate_file(self, path: str | os.PathLike[str]) -> Path:
        """Where a file of the package is."""
        return Path(__file__).with_name("packages") / path


DISTRIBUTIONS = [Ours(module) for module in VERSIONS]


def normal(name: str) -> str:
    """The name of a distribution as indices compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
