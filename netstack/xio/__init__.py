"""XIO: TCP/IP as a library, for the program that it is linked into.

    link.py, taplink.py, links.py   where frames come from and go to: a TAP queue, a packet ring
    stack.py                        one address: frames in, connection table, listeners, time
    states.py                       the state machine of RFC 9293 section 3.10.7
    output.py                       what may be sent, and how a frame is put together
    tcb.py                          a connection, and THE INTERFACE FOR APPLICATIONS
    gather.py                       sending from where the bytes lie: no copy, no retransmission buffer
    timers.py, demux.py, rto.py, congestion.py, reassembly.py, isn.py, seq.py    the parts
    owner.py, keeper.py             who answers for an address when no server does

Supported: RFC 9293 with both opens, half close, silly window avoidance on both sides, zero-window probes; RFC 6298
with a minimum of 200 ms; NewReno (RFC 5681, 6582) from 10 segments (RFC 6928); window scale, timestamps and PAWS
(RFC 7323); challenge acknowledgements (RFC 5961); keyed initial sequence numbers (RFC 6528); TIME-WAIT that a new SYN
may end (RFC 6191); checksum and segmentation offload; ARP and echo (owner.py).

Not supported: IPv6; SACK and ECN; urgent data (the pointer is ignored); text in a SYN; SYN cookies (the backlog is the
bound); keep-alive probes (applications have alarms); path MTU discovery (the MTU is the TAP's, and DF is set); IP
options (passed over); fragments; UDP for applications.
"""
