"""What Linux tells of the processor."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def fields() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo by name; empty where there is no such file."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            found.setdefault(name.strip(), value.strip())
    return found


def flags() -> frozenset[str]:
    """The names of its instruction sets."""
    about = fields()
    return frozenset((about.get("flags") or about.get("Features") or "").split())
