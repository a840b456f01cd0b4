"""The slow half of counters.pxd: making blocks."""
from libc.stdint cimport uint32_t
from libc.stdlib cimport free

from lb._fastpath.c.sys cimport lb_huge_alloc, lb_store_ptr

cdef enum:
    FIRST_PIECE = 32768  # most configurations need no more
    NEXT_PIECE = 2097152


cdef void* stats_new(stats_space* space, uint32_t id, size_t size) noexcept nogil:
    cdef size_t piece_size = NEXT_PIECE if space.pieces != NULL else FIRST_PIECE
    cdef char* block
    size = (size + 63) & ~(<size_t>63)
    if space.piece_left < size:
        block = <char*>lb_huge_alloc(piece_size)
        if block == NULL:
            return NULL
        (<void**>block)[0] = space.pieces
        space.pieces = block
        # Blocks begin on cache lines; the piece itself need not.
        space.piece = <char*>((<size_t>block + sizeof(void*) + 63) & ~(<size_t>63))
        space.piece_left = piece_size - <size_t>(space.piece - block)
    block = space.piece
    space.piece += size
    space.piece_left -= size
    lb_store_ptr(&space.chunks[id // STATS_CHUNK][id % STATS_CHUNK], block)
    return block


cdef void stats_release(stats_space* space) noexcept nogil:
    cdef void* piece = space.pieces
    cdef void* before
    cdef int i
    while piece != NULL:
        before = (<void**>piece)[0]
        free(piece)
        piece = before
    for i in range(STATS_CHUNKS):
        free(space.chunks[i])
