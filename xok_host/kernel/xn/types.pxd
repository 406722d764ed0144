# C-level declarations of types.py.
cdef class XnType:
    cdef public unsigned int id
    cdef public object name, template, owns_program, references_program, counts_program, method_program
    cdef public list sector_of
    cdef public tuple windows
    cdef public bint data, guard_constant, has_acl, traced
    cdef public long long cached, spent, runs
    cpdef ask(self, program, meta, part, da)
