"""Byte streams (transport.pxd): TCP and Unix sockets, plain or with TLS in between."""
from libc.stdint cimport int64_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy, memmove, memset

from lb._fastpath.balance cimport ANY_FAMILY, NO_FAMILY
from lb._fastpath.c.sys cimport (
    AF_INET,
    AF_INET6,
    EAGAIN,
    EINTR,
    EINVAL,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPV6_TRANSPARENT,
    IP_BIND_ADDRESS_NO_PORT,
    IP_TRANSPARENT,
    LB_R_NO_CLIENT_ADDRESS,
    LB_R_OK,
    LB_R_TRANSPARENCY_REFUSED,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    MSG_PEEK,
    POLLOUT,
    POLLRDHUP,
    SHUT_WR,
    SO_LINGER,
    SO_REUSEADDR,
    SOL_SOCKET,
    bind,
    close,
    errno,
    htons,
    iovec,
    lb_add_int,
    lb_store_ptr,
    linger_option,
    msghdr,
    ntohs,
    poll,
    pollfd,
    recv,
    send,
    sendmsg,
    setsockopt,
    shutdown,
    sockaddr_in,
    sockaddr,
    sockaddr_in6,
    sockaddr_storage,
    socklen_t,
    ssize_t,
)
from lb._fastpath.clock cimport monotonic_ns
from lb._fastpath.counters cimport bump
from lb._fastpath.memory cimport page_alloc, page_data, page_free, pages_append, pages_free, slab_alloc, slab_free
from lb._fastpath.pipes cimport pipe_fill, pipe_give, pipe_pour
from lb._fastpath.reactor cimport (
    BATCH_IOV,
    IO_BROKEN,
    IO_CONNECTING,
    IO_CUT,
    IO_HALF_CLOSED,
    SCRATCH_BYTES,
    IO_QUEUED,
    IO_URGENT,
    io_bury,
    io_enqueue,
    io_stand_in_line,
)
from lb._fastpath.timers cimport timer_cancel
from lb._fastpath.tls cimport (
    FRUITLESS_MOST,
    FRUITLESS_SHARE,
    TLS_AGAIN,
    TLS_DONE,
    TLS_FAILED,
    TLS_IN_BYTES,
    TLS_OUT_BYTES,
    TLS_OVERHEAD,
    TLS_RECORD,
    tls_decrypt,
    tls_encrypt,
    tls_free,
    tls_handshake,
    tls_say_goodbye,
)


cdef void conn_release(io* source) noexcept nogil:
    slab_free(&source.r.conn_slab, source)


cdef conn* conn_new(reactor* r, int fd) noexcept nogil:
    cdef conn* c = <conn*>slab_alloc(&r.conn_slab)
    if c == NULL:
        return NULL
    c.base.fd = fd
    c.base.r = r
    c.base.release = conn_release
    c.timer.owner = c
    c.next_all = <conn*>r.connections
    if c.next_all != NULL:
        c.next_all.previous_all = c
    r.connections = c
    lb_add_int(&r.s.descriptors, 1)
    return c


cdef bint note_address(const sockaddr_storage* address, unsigned char* bytes, uint16_t* port) noexcept nogil:
    """An IP address as 16 bytes (IPv4 as ::ffff:a.b.c.d), and its port. False: a Unix socket has none."""
    memset(bytes, 0, 16)
    if address.ss_family == AF_INET:
        bytes[10] = 0xff
        bytes[11] = 0xff
        memcpy(bytes + 12, &(<const sockaddr_in*>address).sin_addr, 4)
        port[0] = ntohs((<const sockaddr_in*>address).sin_port)
    elif address.ss_family == AF_INET6:
        memcpy(bytes, &(<const sockaddr_in6*>address).sin6_addr, 16)
        port[0] = ntohs((<const sockaddr_in6*>address).sin6_port)
    else:
        return False
    return True


cdef bint is_ipv4(const unsigned char* address) noexcept nogil:
    return memcmp(address, <const char*>b"\0\0\0\0\0\0\0\0\0\0\xff\xff", 12) == 0


cdef bint is_nobodys(const unsigned char* address, bint ipv4) noexcept nogil:
    """Of no one host: unspecified, multicast, broadcast (a socket that is bound to it leaves with lb's own address), or
    of IPv6 on one link, nobody knows which.
    """
    if not ipv4:
        return address[0] == 0xff or (address[0] == 0xfe and address[1] & 0xc0 == 0x80) or (
            memcmp(address, <const char*>b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16) == 0
        )
    return address[12] & 0xf0 == 0xe0 or memcmp(address + 12, <const char*>b"\0\0\0\0", 4) == 0 or (
        memcmp(address + 12, <const char*>b"\xff\xff\xff\xff", 4) == 0
    )


cdef int family_for(const upstream_view* up, const unsigned char* client) noexcept nogil:
    """Of the endpoints that can serve a client with this address (16 bytes; NULL: it has none): where connections leave
    with it, one family's cannot go to the other's.
    """
    if not up.transparent:
        return ANY_FAMILY
    if client == NULL or is_nobodys(client, is_ipv4(client)):
        return NO_FAMILY
    return AF_INET if is_ipv4(client) else AF_INET6


cdef bint is_loopback6(const void* address) noexcept nogil:
    return memcmp(address, <const char*>b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\1", 16) == 0


cdef int socket_as_client(int fd, const endpoint* ep, bint is_stream, const unsigned char* address,
        uint16_t port) noexcept nogil:
    """Have a new socket leave with a client's address (16 bytes) and, when it is free, its port (0: any): LB_R_OK, or
    why it cannot (IP_TRANSPARENT, ip(7)).
    """
    cdef sockaddr_storage own
    cdef bint ipv4 = is_ipv4(address)
    cdef socklen_t size = sizeof(sockaddr_in) if ipv4 else sizeof(sockaddr_in6)
    cdef int one = 1
    cdef bint refused
    if ep.family != (AF_INET if ipv4 else AF_INET6):
        return LB_R_NO_CLIENT_ADDRESS  # one family's addresses cannot go to the other's
    if is_nobodys(address, ipv4):
        return LB_R_NO_CLIENT_ADDRESS
    # IPv4's loopback addresses connect refuses to leave with. IPv6's would leave, and nothing would ever come back.
    if is_loopback6(address) and not is_loopback6(&(<const sockaddr_in6*>&ep.address).sin6_addr):
        return LB_R_NO_CLIENT_ADDRESS
    memset(&own, 0, sizeof(own))
    own.ss_family = <unsigned short>ep.family
    if ipv4:
        memcpy(&(<sockaddr_in*>&own).sin_addr, address + 12, 4)
        (<sockaddr_in*>&own).sin_port = htons(port)
        refused = setsockopt(fd, IPPROTO_IP, IP_TRANSPARENT, &one, sizeof(one)) != 0
    else:
        memcpy(&(<sockaddr_in6*>&own).sin6_addr, address, 16)
        (<sockaddr_in6*>&own).sin6_port = htons(port)
        refused = setsockopt(fd, IPPROTO_IPV6, IPV6_TRANSPARENT, &one, sizeof(one)) != 0
    if refused:
        return LB_R_TRANSPARENCY_REFUSED
    if port:
        # Whoever had the port before may be in TIME_WAIT; connect sees to it that both ends together are new. With UDP
        # it does not, and there is no such state: a port that is taken stays with whom it is.
        if is_stream:
            setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one))
        if bind(fd, <sockaddr*>&own, size) == 0:
            return LB_R_OK
        (<sockaddr_in*>&own).sin_port = 0  # of both families it stands in the same place
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one))
    return LB_R_OK if bind(fd, <sockaddr*>&own, size) == 0 else LB_R_TRANSPARENCY_REFUSED


cdef void conn_shut(conn* c) noexcept nogil:
    """Nothing more will be written: say so to the peer. All that was written before has gone out."""
    batch_flush(c.base.r)
    if c.tls != NULL:
        tls_say_goodbye(c.tls)
        send_ciphertext(c)
    if c.out_bytes:  # a goodbye that the socket has no room for
        c.base.flags |= IO_ENDS
    else:
        shutdown(c.base.fd, SHUT_WR)


cdef void conn_leave(conn* c) noexcept nogil:
    """Take the connection off its reactor's list: its descriptor is gone."""
    if c.base.r.looking == c:
        c.base.r.looking = c.next_all
    if c.previous_all != NULL:
        c.previous_all.next_all = c.next_all
    else:
        c.base.r.connections = c.next_all
    if c.next_all != NULL:
        c.next_all.previous_all = c.previous_all


cdef void conn_close(conn* c, bint reset) noexcept nogil:
    """Close and forget everything that waits. With `reset` the peer gets an RST: it must not take what it has for
    whole.
    """
    cdef reactor* r = c.base.r
    cdef linger_option option
    cdef io* owner = &c.base
    if c.base.flags & IO_DEAD:
        return
    if reset and r.batch_owner == owner:
        r.batch_count = 0
        r.batch_owner = NULL
    # The batch may be this connection's, or point into the bytes it has parked.
    batch_flush(r)
    timer_cancel(&c.timer)
    if c.tls != NULL:
        if not reset and c.out_bytes == 0 and not c.base.flags & IO_BROKEN:
            tls_say_goodbye(c.tls)
            send_ciphertext(c)
        tls_free(c.tls)
        c.tls = NULL
    pages_free(&r.pages, &c.out_first, &c.out_last)
    if c.piped != NULL:
        pipe_give(r, c.piped)
        c.piped = NULL
    c.out_bytes = 0
    conn_unpark(c)
    forget_header(c)
    if reset:
        option.l_onoff = 1
        option.l_linger = 0
        setsockopt(c.base.fd, SOL_SOCKET, SO_LINGER, &option, sizeof(option))
    close(c.base.fd)
    conn_leave(c)
    lb_add_int(&r.s.descriptors, -1)
    io_bury(&c.base)


cdef void forget_header(conn* c) noexcept nogil:
    if c.proxied != NULL:
        if c.proxied.values != NULL:
            page_free(&c.base.r.pages, c.proxied.values)
        slab_free(&c.base.r.proxied_slab, c.proxied)
        c.proxied = NULL


# ------------------------------------------------------------------------------------------------------------- reading

cdef ssize_t conn_receive(conn* c, char* buffer, size_t size) noexcept nogil:
    """Up to `size` bytes, or RECEIVE_END, RECEIVE_AGAIN, RECEIVE_ERROR."""
    if c.tls != NULL:
        return receive_tls(c, buffer, size)
    return receive_plain(c, buffer, size)


cdef ssize_t receive_plain(conn* c, char* buffer, size_t size) noexcept nogil:
    cdef ssize_t n
    while True:
        n = recv(c.base.fd, buffer, size, MSG_DONTWAIT)
        if n >= 0:
            break
        if errno == EINTR:
            continue
        c.base.flags &= ~<uint32_t>(IO_READABLE | IO_URGENT)
        if errno == EAGAIN:
            return RECEIVE_AGAIN
        c.base.flags |= IO_BROKEN
        return RECEIVE_ERROR
    if n == 0:
        c.base.flags |= IO_HALF_CLOSED
        c.base.flags &= ~<uint32_t>IO_READABLE
        return RECEIVE_END
    # A short read emptied the socket: what comes later makes a new edge. A FIN that was announced has no edge of its
    # own, nor has what is behind an urgent byte.
    if <size_t>n < size and not c.base.flags & (IO_HALF_CLOSED | IO_BROKEN | IO_URGENT):
        c.base.flags &= ~<uint32_t>IO_READABLE
    return n


cdef ssize_t receive_tls(conn* c, char* buffer, size_t size) noexcept nogil:
    """The same for plaintext: one read of the socket, unless what came is no data, or no whole record yet."""
    cdef tls* t = c.tls
    cdef ssize_t n, made
    while not t.closed and not t.failed:
        n = receive_plain(c, c.base.r.tls_in, TLS_IN_BYTES)
        if n == RECEIVE_END and c.ep != NULL:
            # Cut off without a goodbye: what ends with the connection may not be whole (RFC 8446 6.1).
            c.base.flags |= IO_CUT
        if n <= 0:
            return n
        t.in_at = c.base.r.tls_in
        t.in_end = t.in_at + n
        made = tls_decrypt(t, buffer, size)
        send_ciphertext(c)  # what TLS says by itself: tickets, key updates, alerts
        if made < 0:
            break
        note_yield(t, n, made)
        if t.closed or t.failed:
            c.base.flags |= IO_READABLE  # the end is still to be told
        if made > 0:
            return made
        if not c.base.flags & IO_READABLE:
            return RECEIVE_AGAIN
    c.base.flags &= ~<uint32_t>IO_READABLE
    if t.failed:
        if c.ep != NULL and t.why != NULL:
            lb_store_ptr(&c.ep.tls_error, <void*>t.why)  # with TLS 1.3 it refuses us when the handshake seems over
        c.base.flags |= IO_BROKEN
        return RECEIVE_ERROR
    c.base.flags |= IO_HALF_CLOSED
    return RECEIVE_END


cdef void note_yield(tls* t, ssize_t n, ssize_t made) noexcept nogil:
    """How much plaintext a read has brought. What brings none counts against no turn, and others would wait."""
    if made * FRUITLESS_SHARE >= n:
        t.fruitless = 0
        return
    t.fruitless += <uint32_t>n
    if t.fruitless > FRUITLESS_MOST:
        t.failed = True


cdef bint conn_quiet(conn* c) noexcept nogil:
    """Whether nothing has come, neither bytes nor an end, but what TLS takes for itself (tickets, key updates)."""
    cdef char byte
    if c.tls == NULL:
        if recv(c.base.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) >= 0 or errno != EAGAIN:
            return False
        c.base.flags &= ~<uint32_t>IO_READABLE
        return True
    return receive_tls(c, c.base.r.scratch_in, SCRATCH_BYTES) == RECEIVE_AGAIN


cdef bint conn_open(const conn* c) noexcept nogil:
    """Whether the peer has not ended the connection yet; what it may have sent before that is left alone."""
    cdef pollfd one
    one.fd = c.base.fd
    one.events = <short>POLLRDHUP
    one.revents = 0
    return poll(&one, 1, 0) == 0


cdef int conn_handshake(conn* c, const tls_view* view) noexcept nogil:
    """Go on with the handshake: TLS_DONE, TLS_FAILED, or TLS_AGAIN when it waits for the peer or for its turn.

    `view` is the listener's, NULL towards an endpoint. Bytes that came right behind the handshake are parked.
    """
    cdef reactor* r = c.base.r
    cdef tls* t = c.tls
    cdef ssize_t n
    cdef int result
    cdef int64_t started
    cdef io* before = r.line_endpoints_last if c.ep != NULL else r.line_first
    if c.base.flags & IO_QUEUED:
        return TLS_AGAIN  # it stands in line
    if r.handshake_ns_left <= 0 or (before != NULL and not r.line_moves):
        bump(&r.counts.tls_deferred)
        io_stand_in_line(&c.base, c.ep != NULL)
        return TLS_AGAIN
    batch_flush(r)
    if not t.by_kernel and r.s.tls_by_kernel:
        # Nothing that was encrypted before may go out behind what the kernel encrypts.
        t.fd = c.base.fd if c.out_bytes == 0 else -1
    started = monotonic_ns()
    while True:
        t.in_at = r.tls_in
        t.in_end = r.tls_in
        if c.base.flags & IO_READABLE:
            n = receive_plain(c, r.tls_in, TLS_IN_BYTES)
            if n == RECEIVE_END or n == RECEIVE_ERROR:
                result = TLS_FAILED
                break
            if n > 0:
                t.in_end += n
        result = tls_handshake(t, view)
        send_ciphertext(c)
        if result != TLS_AGAIN or not c.base.flags & IO_READABLE:
            break
    if result == TLS_DONE and t.in_at != t.in_end:
        n = tls_decrypt(t, r.scratch_in, SCRATCH_BYTES)
        if n < 0 or not conn_park(c, r.scratch_in, <size_t>n, SCRATCH_BYTES):
            result = TLS_FAILED
        if t.closed or t.failed:
            c.base.flags |= IO_READABLE
    r.handshake_ns_left -= monotonic_ns() - started
    return result


cdef bint conn_park(conn* c, const char* data, size_t size, size_t limit) noexcept nogil:
    """Keep bytes that cannot be handled yet, behind those kept before. False: over `limit`, or no memory."""
    cdef page* old = c.parked
    cdef page* bigger
    cdef size_t kept = 0
    if size == 0:
        return True
    if old != NULL:
        kept = old.end - old.start
        if kept + size <= old.capacity - sizeof(page):
            if old.end + size > old.capacity - sizeof(page):
                memmove(page_data(old), page_data(old) + old.start, kept)
                old.start = 0
                old.end = <uint32_t>kept
            memcpy(page_data(old) + old.end, data, size)
            old.end += <uint32_t>size
            return True
    if kept + size > limit:
        return False
    bigger = page_alloc(&c.base.r.pages, kept + size)
    if bigger == NULL:
        return False
    if old != NULL:
        memcpy(page_data(bigger), page_data(old) + old.start, kept)
        page_free(&c.base.r.pages, old)
    memcpy(page_data(bigger) + kept, data, size)
    bigger.end = <uint32_t>(kept + size)
    c.parked = bigger
    return True


cdef void conn_unpark(conn* c) noexcept nogil:
    if c.parked != NULL:
        page_free(&c.base.r.pages, c.parked)
        c.parked = NULL


# ------------------------------------------------------------------------------------------------------------- writing

cdef void queue_bytes(conn* c, const char* data, size_t size) noexcept nogil:
    """Let bytes wait for the peer. Without memory the connection is broken: bytes must never be skipped."""
    if not pages_append(&c.base.r.pages, &c.out_first, &c.out_last, data, size):
        c.base.flags |= IO_BROKEN
        io_enqueue(&c.base)
        return
    c.out_bytes += <uint32_t>size


cdef void conn_write_failed(conn* c) noexcept nogil:
    """A send has failed: the peer takes nothing now, or nothing any more."""
    if errno == EAGAIN:
        c.base.flags &= ~<uint32_t>IO_WRITABLE
    else:
        c.base.flags |= IO_BROKEN | IO_CUT
        io_enqueue(&c.base)


cdef void send_ciphertext(conn* c) noexcept nogil:
    """Send what TLS has made; what the peer does not take waits in pages, encrypted as it is."""
    cdef reactor* r = c.base.r
    cdef ssize_t sent = 0
    cdef uint32_t size = r.tls_out_used
    r.tls_out_used = 0
    if size == 0 or c.base.flags & (IO_DEAD | IO_BROKEN):
        return
    if c.out_bytes == 0 and c.base.flags & IO_WRITABLE:
        while True:
            sent = send(c.base.fd, r.tls_out, size, MSG_NOSIGNAL | MSG_DONTWAIT)
            if sent >= 0 or errno != EINTR:
                break
        if sent < 0:
            conn_write_failed(c)
            if c.base.flags & IO_BROKEN:
                return
            sent = 0
    queue_bytes(c, r.tls_out + sent, size - <uint32_t>sent)


cdef void encrypt_batch(conn* c, const iovec* v, int count) noexcept nogil:
    """Small pieces are gathered into one record, large ones encrypted where they stand; all goes out with one call."""
    cdef reactor* r = c.base.r
    cdef const char* p
    cdef size_t left, n, gathered = 0
    cdef int i
    for i in range(count):
        p = <const char*>v[i].iov_base
        left = v[i].iov_len
        if gathered and gathered + left > TLS_RECORD:
            encrypt(c, r.tls_gather, gathered)
            gathered = 0
        while left:
            if left < TLS_RECORD and (gathered or i < count - 1):
                memcpy(r.tls_gather + gathered, p, left)
                gathered += left
                break
            n = left if left < TLS_RECORD else TLS_RECORD
            encrypt(c, p, n)
            p += n
            left -= n
    if gathered:
        encrypt(c, r.tls_gather, gathered)
    send_ciphertext(c)


cdef void encrypt(conn* c, const char* data, size_t size) noexcept nogil:
    if c.base.r.tls_out_used + size + TLS_OVERHEAD > TLS_OUT_BYTES:
        send_ciphertext(c)
    if not c.base.flags & IO_BROKEN and not tls_encrypt(c.tls, data, size):
        c.base.flags |= IO_BROKEN | IO_CUT
        io_enqueue(&c.base)


cdef void batch_flush(reactor* r) noexcept nogil:
    """Send what was collected; what the peer does not take is copied to its pages."""
    cdef conn* c = <conn*>r.batch_owner
    cdef int count = r.batch_count
    cdef int i = 0
    cdef ssize_t sent = 0
    cdef msghdr message
    cdef iovec* v = r.batch
    r.batch_owner = NULL
    r.batch_count = 0
    r.out_used = 0
    if c == NULL or count == 0 or c.base.flags & (IO_DEAD | IO_BROKEN):
        return
    if c.tls != NULL and not c.tls.by_kernel:
        encrypt_batch(c, v, count)
        if c.out_bytes > HIGH_WATER:
            c.base.flags |= IO_FULL
        return
    if c.out_bytes == 0 and c.base.flags & IO_WRITABLE and not c.base.flags & IO_CONNECTING:
        while True:
            if count == 1:
                sent = send(c.base.fd, v[0].iov_base, v[0].iov_len, MSG_NOSIGNAL | MSG_DONTWAIT)
            else:
                message.msg_name = NULL
                message.msg_namelen = 0
                message.msg_control = NULL
                message.msg_controllen = 0
                message.msg_flags = 0
                message.msg_iov = v
                message.msg_iovlen = <size_t>count
                sent = sendmsg(c.base.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT)
            if sent >= 0 or errno != EINTR:
                break
        if sent < 0:
            conn_write_failed(c)
            if c.base.flags & IO_BROKEN:
                return
            sent = 0
    while i < count and <size_t>sent >= v[i].iov_len:
        sent -= <ssize_t>v[i].iov_len
        i += 1
    while i < count:
        queue_bytes(c, <const char*>v[i].iov_base + sent, v[i].iov_len - <size_t>sent)
        sent = 0
        i += 1
    hold_for_kernel(c)
    if c.out_bytes > HIGH_WATER:
        c.base.flags |= IO_FULL


cdef void hold_for_kernel(conn* c) noexcept nogil:
    """The kernel's TLS takes more than TCP has room for, and drops it when writing ends or the socket is closed
    (tls_sw_release_resources_tx). So while there is no room, one byte counts as waiting.
    """
    cdef pollfd one
    if c.tls == NULL or not c.tls.by_kernel or c.tls.held or c.out_bytes or c.base.flags & IO_BROKEN:
        return
    one.fd = c.base.fd
    one.events = <short>POLLOUT
    one.revents = 0
    if poll(&one, 1, 0) == 0:
        c.base.flags &= ~<uint32_t>IO_WRITABLE
        c.tls.held = True
        c.out_bytes = 1


cdef void claim_batch(conn* c) noexcept nogil:
    cdef reactor* r = c.base.r
    if r.batch_owner != &c.base or r.batch_count == BATCH_IOV:
        batch_flush(r)
        r.batch_owner = &c.base


cdef void conn_write(conn* c, const void* data, size_t size) noexcept nogil:
    """Send bytes that stay where they are until the batch is flushed (scratch, constants, an exchange's own pages)."""
    cdef reactor* r = c.base.r
    cdef iovec* last
    if size == 0 or c.base.flags & (IO_DEAD | IO_BROKEN):
        return
    # A few bytes behind others in scratch_out are cheaper copied than gathered.
    if size <= 1024 and r.batch_owner == &c.base and r.out_used + size <= SCRATCH_BYTES and r.batch_count:
        last = &r.batch[r.batch_count - 1]
        if <char*>last.iov_base + last.iov_len == r.scratch_out + r.out_used:
            memcpy(r.scratch_out + r.out_used, data, size)
            r.out_used += <uint32_t>size
            last.iov_len += size
            return
    claim_batch(c)
    r.batch[r.batch_count].iov_base = <void*>data
    r.batch[r.batch_count].iov_len = size
    r.batch_count += 1


cdef char* out_reserve(reactor* r, size_t size) noexcept nogil:
    """Room in scratch_out to build `size` bytes (at most SCRATCH_BYTES) in; out_commit sends them."""
    if r.out_used + size > SCRATCH_BYTES:
        batch_flush(r)
    return r.scratch_out + r.out_used


cdef void out_commit(conn* c, size_t size) noexcept nogil:
    """Send the `size` bytes just built at out_reserve's place."""
    cdef reactor* r = c.base.r
    cdef char* start
    cdef uint32_t used = r.out_used
    if size == 0:
        return
    start = r.scratch_out + used
    if r.batch_owner == &c.base and r.batch_count:
        if <char*>r.batch[r.batch_count - 1].iov_base + r.batch[r.batch_count - 1].iov_len == start:
            r.batch[r.batch_count - 1].iov_len += size
            r.out_used += <uint32_t>size
            return
    if r.batch_owner != &c.base or r.batch_count == BATCH_IOV:
        # Flushing resets out_used, but the bytes stay in place until somebody reserves again.
        batch_flush(r)
        r.batch_owner = &c.base
    r.batch[r.batch_count].iov_base = start
    r.batch[r.batch_count].iov_len = size
    r.batch_count += 1
    r.out_used = used + <uint32_t>size


cdef void conn_write_copy(conn* c, const void* data, size_t size) noexcept nogil:
    """Send bytes that may change before the batch is flushed."""
    cdef char* room
    if size > SCRATCH_BYTES // 2:
        conn_write(c, data, size)
        batch_flush(c.base.r)
        return
    room = out_reserve(c.base.r, size)
    memcpy(room, data, size)
    out_commit(c, size)


cdef ssize_t conn_receive_pipe(conn* c, pipe* p, size_t most) noexcept nogil:
    """As conn_receive, into an empty pipe, and RECEIVE_UNFIT. Only of a connection without TLS."""
    cdef ssize_t n
    if c.base.flags & IO_URGENT:
        return RECEIVE_UNFIT
    n = pipe_fill(p, c.base.fd, most)
    if n > 0:
        return n
    # splice does not go past urgent data, and behind a FIN says 0 there, as at the end.
    if n == 0 or errno == EINVAL:
        return RECEIVE_UNFIT
    c.base.flags &= ~<uint32_t>IO_READABLE
    if errno == EAGAIN:
        return RECEIVE_AGAIN
    c.base.flags |= IO_BROKEN
    return RECEIVE_ERROR


cdef void conn_write_pipe(conn* c, pipe* p) noexcept nogil:
    """Send what is in a pipe; what the peer does not take waits there. Nothing else waits, and nothing is in the batch.
    """
    c.piped = p
    c.out_bytes += p.bytes
    pour(c)
    if c.piped != NULL:
        c.base.flags |= IO_FULL


cdef void pour(conn* c) noexcept nogil:
    cdef pipe* p = c.piped
    cdef ssize_t n
    while p.bytes and c.base.flags & IO_WRITABLE and not c.base.flags & (IO_BROKEN | IO_DEAD):
        n = pipe_pour(p, c.base.fd)
        if n < 0:
            conn_write_failed(c)
            return
        # Again, until the socket says that it is full: a signal (SIGSTOP, debugger, frozen cgroup) ends splice early
        # as well, and then nothing tells of room later.
        c.out_bytes -= <uint32_t>n
    if p.bytes == 0:
        c.piped = NULL
        pipe_give(c.base.r, p)


cdef void conn_drain(conn* c) noexcept nogil:
    """The peer takes bytes again: send what waits, oldest first."""
    cdef page* p
    cdef ssize_t sent
    if c.tls != NULL and c.tls.held and c.base.flags & IO_WRITABLE:
        c.tls.held = False
        c.out_bytes -= 1
    if c.piped != NULL:
        pour(c)
        if c.piped != NULL:
            return
    while c.out_first != NULL and c.base.flags & IO_WRITABLE and not c.base.flags & (IO_BROKEN | IO_CONNECTING):
        p = c.out_first
        sent = send(c.base.fd, page_data(p) + p.start, p.end - p.start, MSG_NOSIGNAL | MSG_DONTWAIT)
        if sent < 0:
            if errno == EINTR:
                continue
            conn_write_failed(c)
            return
        p.start += <uint32_t>sent
        c.out_bytes -= <uint32_t>sent
        if p.start == p.end:
            c.out_first = p.next
            if c.out_first == NULL:
                c.out_last = NULL
            page_free(&c.base.r.pages, p)
    hold_for_kernel(c)
    if c.base.flags & IO_ENDS and c.out_bytes == 0:
        c.base.flags &= ~<uint32_t>IO_ENDS
        shutdown(c.base.fd, SHUT_WR)
    if c.out_bytes <= LOW_WATER:
        c.base.flags &= ~<uint32_t>IO_FULL
