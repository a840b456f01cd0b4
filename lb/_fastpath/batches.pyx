"""Datagrams in batches (batches.pxd)."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from lb._fastpath.c.sys cimport (
    AF_INET,
    CMSG_DATA,
    CMSG_FIRSTHDR,
    CMSG_LEN,
    CMSG_NXTHDR,
    CMSG_SPACE,
    EINTR,
    EINVAL,
    EIO,
    EMSGSIZE,
    IP_PKTINFO,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPV6_PKTINFO,
    IPV6_RECVPKTINFO,
    LB_R_CLIENT_UNREACHABLE,
    LB_R_DATAGRAM_TOO_LONG,
    LB_R_RECEIVE_BUFFER_FULL,
    LB_R_SEND_BUFFER_FULL,
    LB_SK_MEMINFO_DROPS,
    LB_SK_MEMINFO_VARS,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    SO_ERROR,
    SO_MEMINFO,
    SO_RCVBUF,
    SOL_SOCKET,
    SOL_UDP,
    UDP_GRO,
    UDP_SEGMENT,
    cmsghdr,
    errno,
    getsockname,
    getsockopt,
    in6_pktinfo,
    in_pktinfo,
    mmsghdr,
    msghdr,
    recvmmsg,
    send,
    sendmmsg,
    setsockopt,
    sockaddr,
    sockaddr_in,
    sockaddr_in6,
    sockaddr_storage,
    socklen_t,
)
from lb._fastpath.counters cimport bump_by
from lb._fastpath.timers cimport timer_set
from lb._fastpath.transport cimport note_address

cdef extern from *:
    """
    /* As large as the administrator's net.core.rmem_max lets it be: what a burst brings waits here or is lost. */
    #define LB_UDP_RECEIVE_BYTES 2097152
    """
    int RECEIVE_BYTES "LB_UDP_RECEIVE_BYTES"


# -------------------------------------------------------------------------------------------------------------- sockets

cdef void prepare_socket(udp_socket* u) noexcept nogil:
    """Of a listener. Where it has many addresses, its datagrams are to tell which one they ask."""
    cdef sockaddr_storage address
    cdef socklen_t size = sizeof(address)
    cdef int one = 1, room = RECEIVE_BYTES
    cdef unsigned char nothing[16]
    memset(&address, 0, sizeof(address))
    memset(nothing, 0, sizeof(nothing))
    getsockname(u.base.fd, <sockaddr*>&address, &size)
    note_address(&address, u.address, &u.port)
    u.family = address.ss_family
    u.client_size = sizeof(sockaddr_in) if u.family == AF_INET else sizeof(sockaddr_in6)
    u.wildcard = memcmp(&u.address[12], nothing, 4) == 0 and (
        u.family == AF_INET or memcmp(u.address, nothing, 12) == 0
    )
    if u.wildcard and u.family == AF_INET:
        setsockopt(u.base.fd, IPPROTO_IP, IP_PKTINFO, &one, sizeof(one))
    elif u.wildcard:
        setsockopt(u.base.fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &one, sizeof(one))
    setsockopt(u.base.fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof(room))
    setsockopt(u.base.fd, SOL_UDP, UDP_GRO, &one, sizeof(one))  # a kernel that does not know it gives them one by one
    u.kernel_drops = kernel_drops(u)
    u.watch.owner = u
    u.watch.fire = watch_drops
    timer_set(&u.base.r.timers, &u.watch, u.base.r.now_ms + WATCH_MS)


cdef uint32_t kernel_drops(const udp_socket* u) noexcept nogil:
    """What the socket has had no room for since it was opened."""
    cdef uint32_t values[LB_SK_MEMINFO_VARS]
    cdef socklen_t size = sizeof(values)
    memset(values, 0, sizeof(values))
    getsockopt(u.base.fd, SOL_SOCKET, SO_MEMINFO, values, &size)
    return values[LB_SK_MEMINFO_DROPS]


cdef void watch_drops(timer* t) noexcept nogil:
    cdef udp_socket* u = <udp_socket*>t.owner
    cdef uint32_t now = kernel_drops(u)
    if now != u.kernel_drops:
        drop(u, LB_R_RECEIVE_BUFFER_FULL, now - u.kernel_drops)
        u.kernel_drops = now
    timer_set(&u.base.r.timers, t, u.base.r.now_ms + WATCH_MS)


cdef int take_error(io* source) noexcept nogil:
    """What stands against the socket (ICMP), which epoll would tell again and again."""
    cdef int error = 0
    cdef socklen_t size = sizeof(error)
    getsockopt(source.fd, SOL_SOCKET, SO_ERROR, &error, &size)
    return error


cdef void drop(udp_socket* u, int reason, uint64_t count) noexcept nogil:
    if u.stats != NULL:
        bump_by(&u.stats.dropped[reason], count)


cdef bint batches_init(received* b, replies* o) noexcept nogil:
    """False: there is no memory; what there is, batches_release gives back."""
    cdef int i
    b.slots = <char*>malloc(<size_t>RECEIVE_BATCH * SLOT_BYTES)
    o.slots = <char*>malloc(<size_t>REPLY_BATCH * SLOT_BYTES)
    if b.slots == NULL or o.slots == NULL:
        return False
    for i in range(RECEIVE_BATCH):
        b.pieces[i].iov_base = b.slots + <size_t>i * SLOT_BYTES
        b.messages[i].msg_hdr.msg_iov = &b.pieces[i]
        b.messages[i].msg_hdr.msg_iovlen = 1
        b.messages[i].msg_hdr.msg_name = &b.names[i]
    b.used = RECEIVE_BATCH
    return True


cdef void batches_release(received* b, replies* o) noexcept nogil:
    free(b.slots)
    free(o.slots)


# -------------------------------------------------------------------------------------------- from clients to endpoints

cdef int receive_batch(udp_socket* u, received* b) noexcept nogil:
    """How many messages have come. A message is a datagram, or a train of them from one client."""
    cdef int i, n
    cdef msghdr* message
    for i in range(b.used):
        message = &b.messages[i].msg_hdr
        message.msg_namelen = sizeof(sockaddr_in6)
        message.msg_control = &b.controls[i]
        message.msg_controllen = CONTROL_BYTES
        message.msg_flags = 0
        b.pieces[i].iov_len = SLOT_BYTES
    b.used = 0
    n = recvmmsg(u.base.fd, b.messages, RECEIVE_BATCH, MSG_DONTWAIT, NULL)
    if n <= 0:
        return 0
    b.used = n
    for i in range(n):
        b.pieces[i].iov_len = b.messages[i].msg_len
        read_message(u, b, i)
    return n


cdef void read_message(udp_socket* u, received* b, int i) noexcept nogil:
    """Whose it is, which address it asks, and whether it is a train."""
    cdef msghdr* message = &b.messages[i].msg_hdr
    cdef session_key* key = &b.keys[i]
    cdef cmsghdr* c = CMSG_FIRSTHDR(message)
    memset(key, 0, sizeof(session_key))
    memcpy(&key.client, &b.names[i], u.client_size)
    key.listener = <uint64_t>u
    b.train_pieces[i] = 0
    while c != NULL:
        if c.cmsg_level == SOL_UDP and c.cmsg_type == UDP_GRO:
            b.train_pieces[i] = train_piece(c, b.messages[i].msg_len)
        elif u.wildcard:
            read_asked(c, key.asked)
        c = CMSG_NXTHDR(message, c)


cdef void read_asked(cmsghdr* c, uint8_t* asked) noexcept nogil:
    """Source: ip(7) IP_PKTINFO, RFC 3542 6. A socket of both families tells of IPv4 in the form of IPv6, too."""
    cdef in_pktinfo v4
    cdef in6_pktinfo v6
    if c.cmsg_level == IPPROTO_IPV6 and c.cmsg_type == IPV6_PKTINFO:
        memcpy(&v6, CMSG_DATA(c), sizeof(v6))
        memcpy(asked, &v6.ipi6_addr, 16)
    elif c.cmsg_level == IPPROTO_IP and c.cmsg_type == IP_PKTINFO:
        memcpy(&v4, CMSG_DATA(c), sizeof(v4))
        asked[10] = 0xff
        asked[11] = 0xff
        memcpy(asked + 12, &v4.ipi_spec_dst, 4)


cdef void drop_messages(udp_socket* u, const received* b, int i, int j, int reason) noexcept nogil:
    cdef int k
    for k in range(i, j):
        drop(u, reason, count_of(b.messages[k].msg_len, b.train_pieces[k]))


cdef int send_messages(int fd, received* b, int i, int j, bint* apart) noexcept nogil:
    """How many messages of a batch a connected socket has taken; -1 with errno. `apart`: its way takes no trains."""
    cdef mmsghdr messages[RECEIVE_BATCH]
    cdef control controls[RECEIVE_BATCH]
    cdef int ends[RECEIVE_BATCH]
    cdef int count = 0, k = i, n
    if apart[0] or (j == i + 1 and b.train_pieces[i] == 0):
        return 1 if send_pieces(fd, <const char*>b.pieces[i].iov_base, b.messages[i].msg_len, b.train_pieces[i]) else -1
    while k < j:
        n = train_length(b.pieces, b.train_pieces, k, j)
        memset(&messages[count], 0, sizeof(mmsghdr))
        messages[count].msg_hdr.msg_iov = &b.pieces[k]
        messages[count].msg_hdr.msg_iovlen = <size_t>n
        if n > 1 or b.train_pieces[k]:
            put_control(&messages[count].msg_hdr, &controls[count], NULL, NULL,
                        b.train_pieces[k] if b.train_pieces[k] else <uint16_t>b.pieces[k].iov_len)
        k += n
        ends[count] = k
        count += 1
    n = sendmmsg(fd, messages, <unsigned int>count, MSG_DONTWAIT | MSG_NOSIGNAL)
    if n > 0:
        return ends[n - 1] - i
    if messages[0].msg_hdr.msg_control != NULL and is_unfit_train(errno):
        apart[0] = True
        return send_messages(fd, b, i, j, apart)
    return -1


cdef bint send_pieces(int fd, const char* data, uint32_t size, uint16_t piece) noexcept nogil:
    """One datagram, or a train one by one."""
    cdef uint32_t at = 0, length
    if piece == 0:
        return send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0
    while at < size:
        length = piece if size - at > piece else size - at
        if send(fd, data + at, length, MSG_DONTWAIT | MSG_NOSIGNAL) < 0:
            return False
        at += length
    return True


# -------------------------------------------------------------------------------------------- from endpoints to clients

cdef int receive_replies(replies* o, int fd, int want, bint trains) noexcept nogil:
    """How many slots a connected socket has filled; -1 with errno. `trains`: it gives several datagrams as one."""
    cdef int first = o.used, i, n
    for i in range(first, first + want):
        o.pieces[i].iov_base = slot_of(o, i)
        o.pieces[i].iov_len = SLOT_BYTES
        memset(&o.messages[i], 0, sizeof(mmsghdr))
        o.messages[i].msg_hdr.msg_iov = &o.pieces[i]
        o.messages[i].msg_hdr.msg_iovlen = 1
        if trains:
            o.messages[i].msg_hdr.msg_control = &o.controls[i]
            o.messages[i].msg_hdr.msg_controllen = CONTROL_BYTES
    n = recvmmsg(fd, &o.messages[first], <unsigned int>want, MSG_DONTWAIT, NULL)
    for i in range(first, first + n):
        o.pieces[i].iov_len = o.messages[i].msg_len
        o.train_pieces[i] = answer_piece(&o.messages[i])
    return n


cdef uint16_t answer_piece(mmsghdr* m) noexcept nogil:
    cdef cmsghdr* c = CMSG_FIRSTHDR(&m.msg_hdr)
    while c != NULL:
        if c.cmsg_level == SOL_UDP and c.cmsg_type == UDP_GRO:
            return train_piece(c, m.msg_len)
        c = CMSG_NXTHDR(&m.msg_hdr, c)
    return 0


cdef void put_replies(replies* o, int first, const session_key* key, uint64_t hash, bint apart) noexcept nogil:
    """Messages to a client of what lies in the slots from `first` on. `hash`: of its session; `apart`: no trains."""
    cdef int i = first, n
    cdef uint16_t piece
    cdef msghdr* message
    while i < o.used:
        n = 1 if apart else train_length(o.pieces, o.train_pieces, i, o.used)
        piece = o.train_pieces[i]
        if n > 1:
            piece = <uint16_t>o.pieces[i].iov_len
        o.pieces[i].iov_base = slot_of(o, i)
        # As many messages as slots at most, so nothing is overwritten that has not been read.
        message = &o.messages[o.count].msg_hdr
        memset(message, 0, sizeof(msghdr))
        memcpy(&o.names[o.count], &key.client, sizeof(sockaddr_in6))
        message.msg_name = &o.names[o.count]
        message.msg_namelen = o.u.client_size
        message.msg_iov = &o.pieces[i]
        message.msg_iovlen = <size_t>n
        put_control(message, &o.controls[o.count], o.u, key.asked, piece)
        o.trains[o.count] = piece
        o.hashes[o.count] = hash
        o.count += 1
        i += n


cdef void flush_replies(replies* o) noexcept nogil:
    """Send what waits for clients; what the socket does not take is dropped."""
    cdef int done = 0, n
    while done < o.count:
        n = sendmmsg(o.u.base.fd, &o.messages[done], <unsigned int>(o.count - done), MSG_DONTWAIT | MSG_NOSIGNAL)
        if n > 0:
            done += n
        elif errno == EINTR:
            continue
        elif o.trains[done] and is_unfit_train(errno):
            o.unfit(o.u.base.r, o.hashes[done])
            send_apart(o, done)
            done += 1
        elif is_full(errno):
            drop_replies(o, done, o.count, LB_R_SEND_BUFFER_FULL)
            break
        else:
            drop_replies(o, done, done + 1,
                         LB_R_DATAGRAM_TOO_LONG if errno == EMSGSIZE else LB_R_CLIENT_UNREACHABLE)
            done += 1
    o.count = 0
    o.used = 0


cdef uint64_t reply_count(const replies* o, int i) noexcept nogil:
    cdef const msghdr* message = &o.messages[i].msg_hdr
    if message.msg_iovlen > 1:
        return message.msg_iovlen
    return count_of(message.msg_iov[0].iov_len, o.trains[i])


cdef void drop_replies(const replies* o, int i, int j, int reason) noexcept nogil:
    cdef int k
    for k in range(i, j):
        drop(o.u, reason, reply_count(o, k))


cdef void send_apart(replies* o, int i) noexcept nogil:
    """A train that cannot go as one: its datagrams one by one."""
    cdef msghdr* message = &o.messages[i].msg_hdr
    cdef iovec* pieces = message.msg_iov
    cdef size_t count = message.msg_iovlen, k, at, size
    cdef iovec one
    cdef mmsghdr alone
    for k in range(count):
        at = 0
        while at < pieces[k].iov_len:
            size = pieces[k].iov_len - at
            one.iov_base = <char*>pieces[k].iov_base + at
            one.iov_len = size if size < o.trains[i] else o.trains[i]
            alone.msg_hdr = message[0]
            alone.msg_hdr.msg_iov = &one
            alone.msg_hdr.msg_iovlen = 1
            strip_segment(&alone.msg_hdr)
            if sendmmsg(o.u.base.fd, &alone, 1, MSG_DONTWAIT | MSG_NOSIGNAL) != 1:
                drop(o.u, LB_R_SEND_BUFFER_FULL if is_full(errno) else LB_R_CLIENT_UNREACHABLE, 1)
            at += one.iov_len


cdef void strip_segment(msghdr* message) noexcept nogil:
    """UDP_SEGMENT stands last among what goes with a message."""
    message.msg_controllen -= CMSG_SPACE(sizeof(uint16_t))
    if message.msg_controllen == 0:
        message.msg_control = NULL


# --------------------------------------------------------------------------------------------------------------- trains

cdef uint16_t train_piece(cmsghdr* c, uint32_t size) noexcept nogil:
    """The length of a train's pieces; 0: it is one datagram. Source: udp(7), UDP_GRO."""
    cdef int piece
    memcpy(&piece, CMSG_DATA(c), sizeof(piece))
    return <uint16_t>piece if 0 < piece < <int>size else 0


cdef int train_length(const iovec* pieces, const uint16_t* train_pieces, int i, int end) noexcept nogil:
    """How many messages from `i` on make one train: all of one length, but for the last, which may be shorter."""
    cdef size_t piece = pieces[i].iov_len, total = piece
    cdef int k = i + 1
    if train_pieces[i] or piece == 0 or piece > TRAIN_PIECE_MOST:
        return 1
    while k < end and k - i < TRAIN_COUNT and not train_pieces[k] and 0 < pieces[k].iov_len <= piece:
        total += pieces[k].iov_len
        if total > TRAIN_MOST:
            break
        k += 1
        if pieces[k - 1].iov_len < piece:
            break
    return k - i


cdef void put_control(
    msghdr* message, control* space, const udp_socket* u, const uint8_t* asked, uint16_t piece
) noexcept nogil:
    """Say that a message is to be cut into pieces (`piece`) and, where it goes to a client, from which of the addresses
    of `u` it leaves (`asked`). `u` is NULL where it goes to an endpoint.
    """
    cdef cmsghdr* c
    cdef size_t used = 0
    cdef in_pktinfo* v4
    cdef in6_pktinfo* v6
    memset(space, 0, sizeof(control))
    message.msg_control = space
    message.msg_controllen = CONTROL_BYTES
    c = CMSG_FIRSTHDR(message)
    if u != NULL and u.wildcard and u.family == AF_INET:
        v4 = <in_pktinfo*>CMSG_DATA(c)
        memcpy(&v4.ipi_spec_dst, asked + 12, 4)
        used += put_header(c, IPPROTO_IP, IP_PKTINFO, sizeof(in_pktinfo))
    elif u != NULL and u.wildcard:
        v6 = <in6_pktinfo*>CMSG_DATA(c)
        memcpy(&v6.ipi6_addr, asked, 16)
        used += put_header(c, IPPROTO_IPV6, IPV6_PKTINFO, sizeof(in6_pktinfo))
    if piece:
        c = <cmsghdr*>(space.bytes + used)
        memcpy(CMSG_DATA(c), &piece, sizeof(piece))
        used += put_header(c, SOL_UDP, UDP_SEGMENT, sizeof(piece))
    message.msg_controllen = used
    if used == 0:
        message.msg_control = NULL


cdef size_t put_header(cmsghdr* c, int level, int kind, size_t size) noexcept nogil:
    c.cmsg_level = level
    c.cmsg_type = kind
    c.cmsg_len = CMSG_LEN(size)
    return CMSG_SPACE(size)


cdef bint is_unfit_train(int error) noexcept nogil:
    """The route has a smaller MTU than the pieces need, or cannot cut them (udp_send_skb in Linux)."""
    return error == EINVAL or error == EIO or error == EMSGSIZE
