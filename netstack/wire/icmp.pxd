# icmp.py's numbers as C enums: the same names and values, compared by tests/wire/test_wire_offsets.py.
cdef enum:
    TYPE = 0
    CODE = 1
    CHECKSUM = 2
    IDENTIFIER = 4
    SEQUENCE = 6
    MTU = 6
    HEADER = 8
    ECHO_REPLY = 0
    UNREACHABLE = 3
    ECHO_REQUEST = 8
    TIME_EXCEEDED = 11
    PROTOCOL_UNREACHABLE = 2
    PORT_UNREACHABLE = 3
    FRAGMENTATION_NEEDED = 4
    LEAST_QUOTED = 8
    MAX_ERROR = 0x240
    MAX_QUOTED = 0x224
