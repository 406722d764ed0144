# udp.py's numbers as C enums: the same names and values, compared by tests/wire/test_wire_offsets.py.
cdef enum:
    SOURCE = 0
    DESTINATION = 2
    LENGTH = 4
    CHECKSUM = 6
    HEADER = 8
    MAX_PAYLOAD = 0xfff7
