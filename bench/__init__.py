"""Benchmarks: turnout and its peers, side by side in one run. Nothing in turnout imports this."""
