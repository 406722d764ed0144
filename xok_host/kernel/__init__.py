"""Protection only: no I/O, no clock, no event loop. Everything it needs from the world is an argument."""
