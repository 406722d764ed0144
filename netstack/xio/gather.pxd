cimport cython
from libc.stdint cimport uint8_t, uint32_t
from posix.uio cimport iovec
from libc.stdlib cimport realloc, free

cdef enum:
    PIECES = 256

@cython.final
cdef class Iov:
    cdef iovec[256] vector
    cdef readonly int count
    cdef readonly Py_ssize_t length
    cdef int clear(self) noexcept
    cdef int add(self, const uint8_t *buffer, Py_ssize_t offset, Py_ssize_t length) noexcept
    cpdef bytes join(self)

cdef class Gather:
    cdef const uint8_t **starts
    cdef Py_ssize_t *ends
    cdef int count
    cdef int space
    cdef readonly Py_ssize_t length
    cdef readonly int pins
    cdef list owners
    cpdef int add(self, object buffer) except -1
    cpdef int add_address(self, size_t address, Py_ssize_t length) except -1
    @cython.locals(space=int)
    cdef int grow(self) except -1
    cdef int add_piece(self, const uint8_t *pointer, Py_ssize_t length) except -1
    cpdef int released(self) except -1
    cpdef int pin(self) except -1
    cpdef int unpin(self) except -1
    @cython.locals(low=int, high=int, middle=int, done=Py_ssize_t, start=Py_ssize_t, n=Py_ssize_t)
    cdef Py_ssize_t fill(self, Iov iov, Py_ssize_t offset, Py_ssize_t length) noexcept
