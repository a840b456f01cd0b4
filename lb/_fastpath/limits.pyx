"""Limits of clients and listeners (limits.pxd)."""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from lb._fastpath.c.sys cimport lb_cas_i64, lb_hash, lb_peek_i64, lb_try_lock, lb_unlock
from lb._fastpath.reactor cimport client_cell, client_shard

cdef enum:
    SECOND_NS = 1000000000

cdef const char* MAPPED = b"\0\0\0\0\0\0\0\0\0\0\xff\xff"  # ::ffff:0:0/96
cdef const char* TRANSLATED = b"\0\x64\xff\x9b\0\0\0\0\0\0\0\0"  # 64:ff9b::/96 (RFC 6052): IPv4 clients, each by itself


cdef uint64_t name_client(reactor* r, const unsigned char* peer, unsigned char* name) noexcept nogil:
    """Whom an address counts as, and a hash of it."""
    cdef char keyed[24]
    memcpy(name, peer, 16)
    if memcmp(peer, MAPPED, 12) != 0 and memcmp(peer, TRANSLATED, 12) != 0:
        memset(name + 8, 0, 8)
    # Clients choose their addresses, IPv6 ones freely: without the secret they could choose their bucket, too. It goes
    # first, or two addresses that collide would do so whatever it is.
    memcpy(keyed, &r.s.secret, 8)
    memcpy(keyed + 8, name, 16)
    return lb_hash(keyed, 24)


# --------------------------------------------------------------------------------------------------------- concurrency

cdef bint count_client(reactor* r, const unsigned char* peer, uint32_t room, int most) noexcept nogil:
    """Count a connection of this client, unless it has `most` already. Each `room` counts for itself: 0 is that of
    connections, the others those of the sessions of a UDP listener.
    """
    cdef unsigned char name[16]
    cdef uint64_t hash = name_client(r, peer, name)
    cdef client_shard* shard = &r.s.clients[hash & 63]
    cdef client_cell** row = &shard.cells[hash >> 8 & 255]
    cdef client_cell* cell
    cdef bint admitted = True
    while not lb_try_lock(&shard.lock):
        pass  # a few instructions, and only for listeners with this limit
    cell = row[0]
    while cell != NULL and (cell.room != room or memcmp(cell.address, name, 16) != 0):
        cell = cell.next
    if cell == NULL:
        cell = <client_cell*>calloc(1, sizeof(client_cell))
        if cell != NULL:
            memcpy(cell.address, name, 16)
            cell.room = room
            cell.next = row[0]
            row[0] = cell
    if cell == NULL or cell.count >= most:
        admitted = False
    else:
        cell.count += 1
    lb_unlock(&shard.lock)
    return admitted


cdef void forget_client(reactor* r, const unsigned char* peer, uint32_t room) noexcept nogil:
    """A connection that was counted is over."""
    cdef unsigned char name[16]
    cdef uint64_t hash = name_client(r, peer, name)
    cdef client_shard* shard = &r.s.clients[hash & 63]
    cdef client_cell** link = &shard.cells[hash >> 8 & 255]
    cdef client_cell* cell
    while not lb_try_lock(&shard.lock):
        pass
    while link[0] != NULL:
        cell = link[0]
        if cell.room == room and memcmp(cell.address, name, 16) == 0:
            cell.count -= 1
            if cell.count == 0:
                link[0] = cell.next
                free(cell)
            break
        link = &cell.next
    lb_unlock(&shard.lock)


# --------------------------------------------------------------------------------------------------------------- rates

cdef int64_t filled(int64_t full_ns, int64_t now_ns, int rate) noexcept nogil:
    """When a bucket will be full again with one token more taken out of it; 0: there is none in it."""
    cdef int64_t interval = SECOND_NS // rate if rate < SECOND_NS else 1
    if full_ns < now_ns:
        full_ns = now_ns
    return full_ns + interval if full_ns - now_ns <= SECOND_NS - interval else 0


cdef bint listener_in_rate(reactor* r, uint32_t slot, int rate) noexcept nogil:
    """Whether one connection more is within so many a second on this listener; then it has been counted."""
    cdef int64_t* full_ns = &r.s.listener_full_ns[slot]
    cdef int64_t before, after
    while True:
        before = lb_peek_i64(full_ns)
        after = filled(before, r.now_ns, rate)
        if after == 0:
            return False
        if lb_cas_i64(full_ns, before, after):
            return True


cdef bint client_in_rate(reactor* r, const unsigned char* peer, uint32_t room, int rate) noexcept nogil:
    """The same for one client in one `room`."""
    cdef unsigned char name[16]
    cdef uint64_t hash = name_client(r, peer, name)
    cdef rate_row* row = <rate_row*>r.s.client_rates + hash % RATE_ROWS
    cdef rate_cell* cell = &row.cells[0]
    cdef int64_t after
    cdef int i
    while not lb_try_lock(&row.lock):
        pass  # a few instructions, and only for listeners with this limit
    for i in range(RATE_CELLS):
        if row.cells[i].room == room and memcmp(row.cells[i].address, name, 16) == 0:
            cell = &row.cells[i]
            break
        if row.cells[i].full_ns < cell.full_ns:
            cell = &row.cells[i]
    if cell.room != room or memcmp(cell.address, name, 16) != 0:
        memcpy(cell.address, name, 16)
        cell.room = room
        cell.full_ns = 0
    after = filled(cell.full_ns, r.now_ns, rate)
    if after:
        cell.full_ns = after
    lb_unlock(&row.lock)
    return after != 0
