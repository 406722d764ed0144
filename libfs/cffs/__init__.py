"""C-FFS: embedded inodes and explicit grouping (Ganger and Kaashoek, USENIX 1997)."""
