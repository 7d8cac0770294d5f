"""How many processors this process may use, by its affinity and its control group's quota."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator


def available(root: str = "/") -> int:
    """The processors of the affinity, or the control group's quota rounded up, if that is less.

    `root` is where the file system begins in which the control group is looked up.
    """
    affinity = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        affinity = len(os.sched_getaffinity(0))
    return min([affinity, *(max(1, math.ceil(quota)) for quota in _quotas(root))])


def _quotas(root: str) -> Iterator[float]:
    """The quotas, in processors, of this process's control group and of those it is in."""
    groups: dict[str, str] = {}  # by controller; "" is that of version 2
    for line in _lines(root, "/proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        groups |= dict.fromkeys(controllers.split(","), path)
    for line in _lines(root, "/proc/self/mountinfo"):
        fields = line.split(" ")
        dash = fields.index("-") if "-" in fields else 0  # optional fields end there
        if dash < 6 or len(fields) < dash + 3:
            continue
        top, mount, kind, options = *fields[3:5], fields[dash + 1], fields[-1].split(",")
        if kind == "cgroup2" and "" in groups:
            read, path = _quota_2, groups[""]
        elif kind == "cgroup" and "cpu" in groups and "cpu" in options:
            read, path = _quota_1, groups["cpu"]
        else:
            continue
        for folder in _upwards(mount, _below(top, path)):
            quota = read(root, folder)
            if quota is not None:
                yield quota


def _below(top: str, path: str) -> str:
    """The group `path` from where the mount begins; "" if it is not below, as in containers."""
    if top != "/" and path != top and not path.startswith(top + "/"):
        return ""
    return path.removeprefix(top.rstrip("/")).rstrip("/")


def _upwards(mount: str, path: str) -> Iterator[str]:
    while path and "/.." not in path:
        yield mount + path
        path = path.rpartition("/")[0]
    yield mount


def _quota_2(root: str, folder: str) -> float | None:
    for line in _lines(root, f"{folder}/cpu.max"):
        quota, _, period = line.partition(" ")
        return _ratio(quota, period)
    return None


def _quota_1(root: str, folder: str) -> float | None:
    for quota in _lines(root, f"{folder}/cpu.cfs_quota_us"):
        for period in _lines(root, f"{folder}/cpu.cfs_period_us"):
            return _ratio(quota, period)
    return None


def _ratio(quota: str, period: str) -> float | None:
    """Processors; None for "max", -1 and what is not a number."""
    if not (quota.isdecimal() and period.isdecimal() and int(period)):
        return None
    return int(quota) / int(period)


def _lines(root: str, path: str) -> list[str]:
    try:
        with open(root.rstrip("/") + path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read().splitlines()
    except OSError:
        return []
