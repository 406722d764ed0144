# vnet.py's numbers as C enums: the same names and values, compared by tests/wire/test_wire_offsets.py.
cdef enum:
    FLAGS = 0
    GSO_TYPE = 1
    HDR_LEN = 2
    GSO_SIZE = 4
    CSUM_START = 6
    CSUM_OFFSET = 8
    HEADER = 10
    NEEDS_CSUM = 1
    DATA_VALID = 2
    GSO_NONE = 0
    GSO_TCPV4 = 1
    GSO_UDP = 3
    GSO_TCPV6 = 4
    GSO_UDP_L4 = 5
    GSO_ECN = 128
