"""The class of flow_look.pyx, for the engine, which asks."""
from libc.stdint cimport uint32_t

from lb._fastpath.flows cimport look_part, look_question

cdef class FlowLook:
    cdef look_question question
    cdef look_part* parts
    cdef int count
    cdef bytes endpoint
    cdef list listener_names

    cdef ask_client(self, object client)
    cdef dict describe(self, int i, uint32_t n)
