"""Memory of one reactor: slabs for its structs and pages for bytes that must wait. Nothing here is shared.

A page exists only while bytes wait in it. All page bytes of all reactors count against one budget, so that slow peers
cost bounded memory: when it is used up, page_alloc returns NULL and the exchange that asked ends with `no-memory`.
"""
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from lb._fastpath.c.sys cimport lb_add_i64

cdef enum:
    PAGE_CLASSES = 4
    PAGE_SMALLEST = 1024  # Sizes: 1, 4, 16 and 64 KiB; what is larger comes from malloc.
    SLAB_CHUNK = 65536

cdef struct slab_node:
    slab_node* next

cdef struct slab:
    size_t size
    slab_node* free_list
    slab_node* chunks

cdef struct page:
    page* next
    uint32_t capacity
    uint32_t start  # Bytes [start, end) of the data behind this header wait.
    uint32_t end
    uint32_t page_class

cdef struct memory:
    page* free_pages[PAGE_CLASSES]
    int free_counts[PAGE_CLASSES]
    int64_t* budget_left  # Shared by all reactors.

cdef bint slab_grow(slab* s) noexcept nogil
cdef void slab_release(slab* s) noexcept nogil
cdef page* page_new(memory* m, int page_class, size_t size) noexcept nogil
cdef bint pages_append(memory* m, page** first, page** last, const char* data, size_t size) noexcept nogil
cdef void pages_free(memory* m, page** first, page** last) noexcept nogil
cdef void memory_release(memory* m) noexcept nogil

cdef inline void slab_init(slab* s, size_t size) noexcept nogil:
    s.size = (size + 15) & ~(<size_t>15)
    s.free_list = NULL
    s.chunks = NULL

cdef inline void* slab_alloc(slab* s) noexcept nogil:
    """A zeroed struct, or NULL."""
    if s.free_list == NULL and not slab_grow(s):
        return NULL
    cdef slab_node* node = s.free_list
    s.free_list = node.next
    memset(node, 0, s.size)
    return node

cdef inline void slab_free(slab* s, void* item) noexcept nogil:
    (<slab_node*>item).next = s.free_list
    s.free_list = <slab_node*>item

cdef inline char* page_data(page* p) noexcept nogil:
    return <char*>p + sizeof(page)

cdef inline int page_class_for(size_t size) noexcept nogil:
    if size <= 1024 - sizeof(page):
        return 0
    if size <= 4096 - sizeof(page):
        return 1
    if size <= 16384 - sizeof(page):
        return 2
    if size <= 65536 - sizeof(page):
        return 3
    return PAGE_CLASSES

cdef inline page* page_alloc(memory* m, size_t size) noexcept nogil:
    """A page with room for at least `size` bytes, or NULL when the budget is used up."""
    cdef int page_class = page_class_for(size)
    cdef page* p
    if page_class < PAGE_CLASSES and m.free_pages[page_class] != NULL:
        p = m.free_pages[page_class]
        m.free_pages[page_class] = p.next
        m.free_counts[page_class] -= 1
        p.next = NULL
        p.start = 0
        p.end = 0
        return p
    return page_new(m, page_class, size)

cdef inline void page_free(memory* m, page* p) noexcept nogil:
    cdef uint32_t page_class = p.page_class
    # About 256 KiB of each class stay at hand; the rest goes back to the system and the budget.
    if page_class < PAGE_CLASSES and m.free_counts[page_class] < (256 >> (2 * page_class)):
        p.next = m.free_pages[page_class]
        m.free_pages[page_class] = p
        m.free_counts[page_class] += 1
        return
    lb_add_i64(m.budget_left, <int64_t>p.capacity)
    free(p)
