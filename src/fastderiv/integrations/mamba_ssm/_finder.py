"""The finder that answers imports of `mamba_ssm` and its kin, and questions about them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import Distribution, DistributionFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from ._distributions import DISTRIBUTIONS, normal
from ._serving import SERVED, serve

PACKAGES = Path(__file__).with_name("packages")

# The names that are answered here, each with the extension without which it is no use.
NAMES = {
    "mamba_ssm": "selective_scan_cuda",
    "causal_conv1d": "causal_conv1d_cuda",
    "selective_scan_cuda": None,
    "selective_scan_cuda_core": None,
    "selective_scan_cuda_oflex": None,
    "causal_conv1d_cuda": None,
}


class Finder(DistributionFinder):
    """Finds real packages where they are complete, else ours.

    It stands before all other finders, so that it sees real packages when they are imported.
    """

    def __init__(self) -> None:
        self.broken: set[str] = set()  # real packages that could not be imported

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of one of `NAMES`, or of a module of real packages that is to be served."""
        top, _, below = name.partition(".")
        if top not in NAMES or (below and name not in SERVED):
            return None
        found = self._elsewhere(name, path, target)
        if found is None:
            return None if below or self._better_absent(name) else _our_spec(name)
        if found.loader is not None and not _of_ours(found):
            found.loader = _Watched(found.loader, self)
        return found

    def find_distributions(
        self, context: DistributionFinder.Context | None = None
    ) -> Iterable[Distribution]:
        """What `importlib.metadata` says of packages that are ours."""
        context = DistributionFinder.Context() if context is None else context
        asked = context.name
        for distribution in DISTRIBUTIONS if context.path is sys.path else []:
            name = distribution.module
            if asked is None or normal(asked) == normal(name):
                spec = self.find_spec(name, None)
                if spec is not None and _of_ours(spec):
                    yield distribution

    def _elsewhere(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What the other finders find, unless that is incomplete or a mere folder of that name."""
        extension = NAMES.get(name)
        if name in self.broken or (extension and self._elsewhere(extension) is None):
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find(name, path, target) if find else None
            if spec is not None and spec.origin is not None:
                return spec
        return None

    def _better_absent(self, name: str) -> bool:
        """Whether a real mamba_ssm would take our causal_conv1d for tensors on its GPU."""
        return name == "causal_conv1d" and self._elsewhere("mamba_ssm") is not None


class _Watched(Loader):
    """The loader of a real module, and what is to be done when that has been imported."""

    def __init__(self, real: Any, finder: Finder) -> None:
        self.real, self.finder = real, finder
        self.failure: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        try:
            module: ModuleType | None = self.real.create_module(spec)
        except ImportError as error:  # an extension for another PyTorch, say
            self.failure = error
            return None
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Run the real module and serve it; run ours in its place if the real one fails."""
        name = module.__name__
        try:
            if self.failure is not None:
                raise self.failure
            self.real.exec_module(module)
        except Exception as error:
            if name not in NAMES:
                raise
            _warn(name, error)
        else:
            extension = NAMES.get(name)
            if extension is None or not is_ours(sys.modules.get(extension)):
                self._finish(module)
                return
            # it has found our extension, because its own is broken, which has been said
        self.finder.broken.add(name)
        _replace(module)

    def _finish(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self.real
        if self.finder in sys.meta_path:  # no uninstall() came between
            serve(module)


def is_ours(module: Any) -> bool:
    """Whether a module, which may be anything that `sys.modules` holds, is one of our files."""
    spec = getattr(module, "__spec__", None)
    return isinstance(spec, ModuleSpec) and spec.name.split(".")[0] in NAMES and _of_ours(spec)


def forget(name: str, but: ModuleType | None = None) -> None:
    """Remove a module and all below it from `sys.modules`, except for one."""
    for one, module in list(sys.modules.items()):
        if (one == name or one.startswith(f"{name}.")) and (but is None or module is not but):
            del sys.modules[one]


def _of_ours(spec: ModuleSpec) -> bool:
    return spec.origin is not None and PACKAGES in Path(spec.origin).parents


def _our_spec(name: str) -> ModuleSpec:
    spec = PathFinder.find_spec(name, [str(PACKAGES)])
    if spec is None:
        raise ModuleNotFoundError(f"fastderiv lacks its own file for {name}", name=name)
    return spec


def _warn(name: str, error: Exception) -> None:
    warnings.warn(
        f"the {name} that is installed cannot be imported ({type(error).__name__}: {error}); "
        "fastderiv's takes its place",
        RuntimeWarning,
        stacklevel=2,
    )


def _replace(module: ModuleType) -> None:
    """Make `module`, a real one that is no use, our module of that name."""
    name, spec, ours = module.__name__, module.__spec__, _our_spec(module.__name__)
    assert spec is not None and ours.loader is not None
    forget(name, but=module)
    # importlib goes on with this spec and this module, so that both become ours in place
    for attribute in ("loader", "origin", "submodule_search_locations", "cached"):
        setattr(spec, attribute, getattr(ours, attribute))
    fresh = module_from_spec(ours)
    vars(module).clear()
    vars(module).update(vars(fresh), __spec__=spec)
    ours.loader.exec_module(module)
