"""How many connections a client may have, and how many new ones a second it and everybody together may make.

Rates are token buckets that hold what one second brings (HAProxy's `rate-limit sessions`), each kept as one number: the
time at which the bucket will be full again (the virtual scheduling form of GCRA, ITU-T I.371). A client is its IPv4
address, or the /64 of its IPv6 address: a site has at least that much (RFC 6177), and who could take another address
for each connection would have no limit. All of it is exact over all reactors.
"""
from libc.stdint cimport int64_t, uint32_t

from lb._fastpath.reactor cimport reactor

cdef enum:
    # Buckets of clients: of so many the table knows, whoever there is. One whose bucket is full is forgotten first,
    # which costs nothing; when all of a row are in use, the one that is full soonest.
    RATE_ROWS = 8192
    RATE_CELLS = 7

cdef struct rate_cell:
    unsigned char address[16]
    int64_t full_ns
    uint32_t room

cdef struct rate_row:
    rate_cell cells[RATE_CELLS]
    int lock

cdef bint count_client(reactor* r, const unsigned char* peer, uint32_t room, int most) noexcept nogil
cdef void forget_client(reactor* r, const unsigned char* peer, uint32_t room) noexcept nogil
cdef bint client_in_rate(reactor* r, const unsigned char* peer, uint32_t room, int rate) noexcept nogil
cdef int64_t filled(int64_t full_ns, int64_t now_ns, int rate) noexcept nogil
cdef bint listener_in_rate(reactor* r, uint32_t slot, int rate) noexcept nogil
