"""The Linux edge: what the exokernel needs of the host, and nothing that decides for a libOS."""
