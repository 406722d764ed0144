# C-level declarations of udf.py.
cdef unsigned long long *words(flat) noexcept
cpdef unsigned long long element(unsigned long long da) noexcept
cpdef elements(raw)
cdef answer(unsigned long long *v, Py_ssize_t count, bint named, said)
cdef bint same(unsigned long long *a, unsigned long long *b, Py_ssize_t n) noexcept
cpdef canonical(raw)
cpdef bint owns(extents, unsigned long long block, unsigned long long count, unsigned long long kind=*) except -1
cpdef Py_ssize_t run_of(extents, unsigned long long block) noexcept
cpdef unsigned long long kind(extents, Py_ssize_t run) noexcept
cpdef unsigned long long end(extents, Py_ssize_t run) noexcept
cpdef unsigned long long kind_of(extents, unsigned long long block) noexcept
