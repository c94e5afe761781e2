"""Texts as people read them: spans of time, moments, sizes, rates, counts, examples."""

from __future__ import annotations

import time


def span(seconds: float) -> str:
    """A span of time in its two largest units at most: ``12 s``, ``3 min 5 s``, ``2 h 1 min``, ``4 d 2 h``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def moment(ts: float) -> str:
    """Wall-clock seconds as local date and time."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ts))
    except (OverflowError, ValueError, OSError):  # whatever another program wrote into the file
        return f"@{ts:g}"


def size(count: float) -> str:
    """Bytes with a decimal unit: ``17 B``, ``3.4 kB``, ``1.2 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def counted(count: int, what: str) -> str:
    """``1 connection``, ``2 connections``."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def examples(*lines: str) -> str:
    """The end of a verb's help, for click: lines to type."""
    return "\n  ".join(["\b\nExamples:" if len(lines) > 1 else "\b\nExample:", *lines])
