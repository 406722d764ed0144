# C-level declarations of udf.py.
cdef unsigned long long *words(flat) noexcept
cpdef unsigned long long element(unsigned long long da) noexcept
cpdef elements(raw)
cpdef canonical(raw)
