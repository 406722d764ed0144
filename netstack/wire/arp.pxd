# arp.py's numbers as C enums: the same names and values, compared by tests/wire/test_wire_offsets.py.
cdef enum:
    HARDWARE = 0
    PROTOCOL = 2
    HARDWARE_LENGTH = 4
    PROTOCOL_LENGTH = 5
    OPERATION = 6
    SENDER_MAC = 8
    SENDER_ADDRESS = 14
    TARGET_MAC = 18
    TARGET_ADDRESS = 24
    HEADER = 28
    REQUEST = 1
    REPLY = 2
    HARDWARE_ETHERNET = 1
    PROTOCOL_IPV4 = 0x800
