"""The slow halves of memory.pxd: growing slabs and making pages."""
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport free, malloc

from lb._fastpath.c.sys cimport lb_add_i64


cdef bint slab_grow(slab* s) noexcept nogil:
    cdef char* chunk = <char*>malloc(SLAB_CHUNK)
    if chunk == NULL:
        return False
    (<slab_node*>chunk).next = s.chunks
    s.chunks = <slab_node*>chunk
    cdef size_t at = 16
    while at + s.size <= SLAB_CHUNK:
        slab_free(s, chunk + at)
        at += s.size
    return True


cdef void slab_release(slab* s) noexcept nogil:
    cdef slab_node* next_chunk
    while s.chunks != NULL:
        next_chunk = s.chunks.next
        free(s.chunks)
        s.chunks = next_chunk
    s.free_list = NULL


cdef page* page_new(memory* m, int page_class, size_t size) noexcept nogil:
    cdef size_t capacity = (<size_t>PAGE_SMALLEST) << (2 * page_class)
    if page_class >= PAGE_CLASSES:
        capacity = size + sizeof(page)
    if lb_add_i64(m.budget_left, -<int64_t>capacity) < 0:
        lb_add_i64(m.budget_left, <int64_t>capacity)
        return NULL
    cdef page* p = <page*>malloc(capacity)
    if p == NULL:
        lb_add_i64(m.budget_left, <int64_t>capacity)
        return NULL
    p.next = NULL
    p.capacity = <uint32_t>capacity
    p.start = 0
    p.end = 0
    p.page_class = <uint32_t>page_class
    return p


cdef void memory_release(memory* m) noexcept nogil:
    cdef page* p
    cdef int page_class
    for page_class in range(PAGE_CLASSES):
        while m.free_pages[page_class] != NULL:
            p = m.free_pages[page_class]
            m.free_pages[page_class] = p.next
            lb_add_i64(m.budget_left, <int64_t>p.capacity)
            free(p)
        m.free_counts[page_class] = 0
