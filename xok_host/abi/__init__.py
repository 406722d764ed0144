"""What a library operating system may import: types, errors, the call table, builders, the client stub."""
