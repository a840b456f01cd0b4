"""The slow halves of memory.pxd: growing slabs and making pages."""
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

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


cdef bint pages_append(memory* m, page** first, page** last, const char* data, size_t size) noexcept nogil:
    """Let bytes wait in a chain of pages. False: no memory, and only some of them are kept."""
    cdef page* p = last[0]
    cdef size_t room
    while size:
        room = p.capacity - sizeof(page) - p.end if p != NULL else 0
        if room == 0:
            p = page_alloc(m, size if size < 16000 else 16000)
            if p == NULL:
                return False
            if last[0] != NULL:
                last[0].next = p
            else:
                first[0] = p
            last[0] = p
            room = p.capacity - sizeof(page)
        if room > size:
            room = size
        memcpy(page_data(p) + p.end, data, room)
        p.end += <uint32_t>room
        data += room
        size -= room
    return True


cdef void pages_free(memory* m, page** first, page** last) noexcept nogil:
    """Give a whole chain back."""
    cdef page* p = first[0]
    while p != NULL:
        first[0] = p.next
        page_free(m, p)
        p = first[0]
    last[0] = NULL


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
