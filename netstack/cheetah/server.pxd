# C-level declarations of server.py.
cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t
from netstack.cheetah.cache cimport Cache, Response
from netstack.cheetah.scan cimport Scan
from netstack.wire.octets cimport at, to_bytes
from netstack.xio.constants cimport SEND_FIN
from netstack.xio.tcb cimport Application, Tcb

cdef class Connection(Tcb):
    cdef bytearray partial
    cdef int queued
    cdef bint paused
    cdef bint done
    cdef bint ended
    cdef int64_t deadline
    cdef uint32_t progress
    cdef object rest

cdef class Cheetah(Application):
    cdef readonly Cache cache
    cdef Scan scan
    cdef object store
    cdef int64_t second
    cdef int64_t wall_ns
    cdef bytes date
    cdef int64_t opened
    cdef int64_t closed
    cdef int64_t requests
    cdef int64_t hits
    cdef int64_t refused
    cdef int64_t timed_out
    cdef int64_t content
    cdef int64_t[6] classes
    cpdef int tick(self, int64_t wall_ns) except -1
    @cython.locals(connection=Connection)
    cdef int on_open(self, Tcb tcb) except -1
    @cython.locals(connection=Connection, used=Py_ssize_t)
    cdef int on_data(self, Tcb tcb, const uint8_t *data, Py_ssize_t length) except -1
    @cython.locals(connection=Connection)
    cdef int on_sent(self, Tcb tcb) except -1
    @cython.locals(connection=Connection)
    cdef int on_end(self, Tcb tcb) except -1
    @cython.locals(connection=Connection)
    cdef int on_close(self, Tcb tcb, int reason) except -1
    @cython.locals(connection=Connection, now=int64_t)
    cdef int on_alarm(self, Tcb tcb) except -1
    @cython.locals(used=Py_ssize_t)
    cdef int resume(self, Connection connection) except -1
    @cython.locals(start=Py_ssize_t, used=Py_ssize_t, plain=bint, entry=Response)
    cdef Py_ssize_t read(self, Connection connection, const uint8_t *data, Py_ssize_t length) except -1
    @cython.locals(now=int64_t, fresh=bint)
    cdef Response usable(self, Response entry, int64_t now)
    @cython.locals(made=Response, tries=int)
    cdef Py_ssize_t consider(self, Connection connection, bytes data, bint plain) except -1
    cdef int answer(self, Connection connection, Response entry) except -1
    @cython.locals(made=Response)
    cdef int go_on(self, Connection connection) except -1
    cdef int give_up(self, Connection connection) except -1
