"""The slow half of counters.pxd: making blocks."""
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc

from lb._fastpath.c.sys cimport lb_store_ptr


cdef void* stats_new(stats_space* space, uint32_t id, size_t size) noexcept nogil:
    cdef void* block = calloc(1, size)
    if block != NULL:
        lb_store_ptr(&space.chunks[id // STATS_CHUNK][id % STATS_CHUNK], block)
    return block
