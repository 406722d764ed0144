# C-level declarations of extents.py.
cdef class Extents:
    cdef bytes _data
    cdef list _list
    cdef readonly Py_ssize_t n
    cdef unsigned long long db(self, Py_ssize_t i) noexcept
    cdef unsigned long long count(self, Py_ssize_t i) noexcept
    cdef unsigned int third(self, Py_ssize_t i) noexcept
    cdef unsigned long long total(self) noexcept
