# C-level declarations of types.py.
from xok_host.kernel.xn cimport interp, udf
from xok_host.kernel.xn.interp cimport Program


cdef class XnType:
    cdef public unsigned int id
    cdef public object name, template
    cdef public Program owns_program, references_program, counts_program, method_program, reboot_program
    cdef public list sector_of
    cdef public tuple windows, discriminators
    cdef public bint careful, data, guard_constant, has_acl, traced
    cdef public long long cached, spent, runs
    cpdef show(self, meta, unsigned int part)
    cpdef ask(self, Program program, unsigned int part, unsigned long long da, said)
