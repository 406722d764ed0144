"""Names for small numbers that Python and C must agree on: states, segment flags, send flags, reasons.

`constants.pxd` repeats them as C enums, so that a comparison costs nothing; tests/xio/test_twins.py compares the two.
"""

from __future__ import annotations

# States of a connection (RFC 9293 section 3.3.2). LISTEN is a Listener, and TIME_WAIT a Remnant, without a TCB.
CLOSED = 0
LISTEN = 1
SYN_SENT = 2
SYN_RECEIVED = 3
ESTABLISHED = 4
FIN_WAIT_1 = 5
FIN_WAIT_2 = 6
CLOSE_WAIT = 7
CLOSING = 8
LAST_ACK = 9
TIME_WAIT = 10

# Control bits of a segment (RFC 9293 section 3.1).
FIN = 0x01
SYN = 0x02
RST = 0x04
PSH = 0x08
ACK = 0x10
URG = 0x20

# Flags of Endpoint.send.
SEND_MORE = 1  # more follows at once: hold back a last, partial segment (“full-size segments only”)
SEND_FIN = 2  # nothing follows: FIN rides on the last segment

# Why Application.on_close is called.
CLOSE_DONE = 0  # both sides closed and everything was acknowledged
CLOSE_RESET = 1  # the peer sent RST
CLOSE_TIMEOUT = 2  # retransmission, persist or keep-alive gave up
CLOSE_REFUSED = 3  # RST in answer to our SYN
CLOSE_ABORTED = 4  # this side called abort
CLOSE_UNREACHABLE = 5  # the next hop did not answer

# What lies in the connection table.
KIND_TCB = 0
KIND_REMNANT = 1
