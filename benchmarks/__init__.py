"""Measurements beside peers, interleaved, as ratios: absolute times move between machines, ratios much less.

`./xok bench` runs all of them; see `__main__` for the options and `docs/benchmarks.md` for how to read them.
"""
