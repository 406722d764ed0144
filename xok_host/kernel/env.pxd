# C-level declarations of env.py.
cdef class Environment:
    cdef public unsigned int id
    cdef public object uid, name, capabilities, group
    cdef public set pages, trees, locks
    cdef public dict pinned, unsettled
    cdef public long npins, pending
    cdef public bint alive
