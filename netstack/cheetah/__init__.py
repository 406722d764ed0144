"""Cheetah: an HTTP server whose file cache is its retransmission pool (thesis section 5.4.2).

In the order in which a request passes through them:

* `server`    the application on XIO: buffers, the compiled path of a hit, timeouts, counters;
* `cache`     prebuilt responses by request, over pinned pages, valid while a word in memory says so;
* `request`   the authority on what a request means;         `target`  paths out of targets;
* `conditional` preconditions and ranges;                      `response` heads and error pages;
* `respond`   one request and a FileStore into one Reply;      `store`    where documents come from;
* `program`   the libOS: what runs inside an environment.

`request`, `target`, `conditional`, `response`, `respond` and `cache` do no I/O and read no clock.
"""
