"""Pure rules: no socket, os, time, asyncio or logging. Time comes in as ``now: float`` (seconds)."""
