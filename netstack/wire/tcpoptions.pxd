# tcpoptions.py's numbers as C enums: the same names and values, compared by tests/wire/test_wire_offsets.py.
cdef enum:
    OPTION_END = 0
    OPTION_NOP = 1
    OPTION_MSS = 2
    OPTION_WINDOW_SCALE = 3
    OPTION_SACK_PERMITTED = 4
    OPTION_SACK = 5
    OPTION_TIMESTAMPS = 8
    LENGTH_MSS = 4
    LENGTH_WINDOW_SCALE = 3
    LENGTH_SACK_PERMITTED = 2
    LENGTH_TIMESTAMPS = 10
    SACK_BLOCK = 8
    MAX_OPTIONS = 40
    MAX_SHIFT = 14
    MAX_SACK_BLOCKS = 4
