# ipv4.py's numbers as C enums: the same names and values, compared by tests/wire/test_wire_offsets.py.
cdef enum:
    VERSION_IHL = 0
    TOS = 1
    TOTAL_LENGTH = 2
    IDENTIFICATION = 4
    FRAGMENT = 6
    TTL = 8
    PROTOCOL = 9
    CHECKSUM = 10
    SOURCE = 12
    DESTINATION = 16
    HEADER = 20
    RESERVED = 0x8000
    DONT_FRAGMENT = 0x4000
    MORE_FRAGMENTS = 0x2000
    OFFSET_MASK = 0x1fff
    PROTOCOL_ICMP = 1
    PROTOCOL_TCP = 6
    PROTOCOL_UDP = 17
    OPTION_END = 0
    OPTION_NOP = 1
    OPTION_LSRR = 131
    OPTION_SSRR = 137
    MAX_OPTIONS = 40
    MAX_DATAGRAM = 0xffff
    DEFAULT_TTL = 64
