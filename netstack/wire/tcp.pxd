# tcp.py's numbers as C enums: the same names and values, compared by tests/wire/test_wire_offsets.py.
cdef enum:
    SOURCE = 0
    DESTINATION = 2
    SEQUENCE = 4
    ACKNOWLEDGMENT = 8
    DATA_OFFSET = 12
    FLAGS = 13
    WINDOW = 14
    CHECKSUM = 16
    URGENT = 18
    HEADER = 20
    FIN = 0x1
    SYN = 0x2
    RST = 0x4
    PSH = 0x8
    ACK = 0x10
    URG = 0x20
    ECE = 0x40
    CWR = 0x80
