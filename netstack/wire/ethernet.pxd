# ethernet.py's numbers as C enums: the same names and values, compared by tests/wire/test_wire_offsets.py.
cdef enum:
    DESTINATION = 0
    SOURCE = 6
    TYPE = 12
    HEADER = 14
    TYPE_IPV4 = 0x800
    TYPE_ARP = 0x806
    TYPE_IPV6 = 0x86dd
    LEAST_TYPE = 0x600
