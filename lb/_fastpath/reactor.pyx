"""The loop of reactor.pxd."""
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from lb._fastpath.c.sys cimport (
    EFD_CLOEXEC,
    EFD_NONBLOCK,
    EPOLL_CLOEXEC,
    EPOLL_CTL_ADD,
    EPOLL_CTL_MOD,
    EPOLLERR,
    EPOLLET,
    EPOLLHUP,
    EPOLLIN,
    EPOLLOUT,
    EPOLLPRI,
    EPOLLRDHUP,
    close,
    epoll_create1,
    epoll_ctl,
    epoll_event,
    epoll_wait,
    eventfd,
    getentropy,
    lb_cas_ptr,
    lb_fence,
    lb_load_int,
    lb_load_ptr,
    lb_peek_int,
    lb_put_i64,
    lb_put_int,
    lb_random,
    lb_store_u64,
    lb_swap_ptr,
    read,
    write,
)
from lb._fastpath.clock cimport monotonic_ns
from lb._fastpath.counters cimport bump, bump_by
from lb._fastpath.memory cimport memory_release, slab_release
from lb._fastpath.timers cimport wheel_init, wheel_run, wheel_sleep_ms


cdef bint reactor_init(reactor* r, shared* s, int index) noexcept nogil:
    cdef epoll_event event
    memset(r, 0, sizeof(reactor))
    r.s = s
    r.index = index
    r.pages.budget_left = &s.budget_left
    r.scratch_in = <char*>malloc(BULK_BYTES)
    r.scratch_out = <char*>malloc(SCRATCH_BYTES)
    r.scratch_text = <char*>malloc(SCRATCH_BYTES)
    r.tls_in = <char*>malloc(SCRATCH_BYTES)
    r.tls_out = <char*>malloc(2 * SCRATCH_BYTES)
    r.tls_gather = <char*>malloc(SCRATCH_BYTES)
    r.epfd = epoll_create1(EPOLL_CLOEXEC)
    r.wakeup_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    if r.scratch_in == NULL or r.scratch_out == NULL or r.scratch_text == NULL or r.epfd < 0 or r.wakeup_fd < 0:
        return False
    if r.tls_in == NULL or r.tls_out == NULL or r.tls_gather == NULL:
        return False
    r.now_ns = monotonic_ns()
    r.now_ms = r.now_ns // 1000000
    r.heartbeat_ms = r.now_ms
    if getentropy(r.random, sizeof(r.random)) != 0:
        return False
    wheel_init(&r.timers, r.now_ms)
    event.events = EPOLLIN
    event.data.ptr = NULL
    return epoll_ctl(r.epfd, EPOLL_CTL_ADD, r.wakeup_fd, &event) == 0


cdef void reactor_release(reactor* r) noexcept nogil:
    """After its thread has ended."""
    cdef command* c
    while r.commands != NULL:
        c = <command*>r.commands
        r.commands = c.next
        free(c)
    if r.epfd >= 0:
        close(r.epfd)
    if r.wakeup_fd >= 0:
        close(r.wakeup_fd)
    memory_release(&r.pages)
    slab_release(&r.conn_slab)
    slab_release(&r.exchange_slab)
    slab_release(&r.stream_slab)
    slab_release(&r.flow_slab)
    slab_release(&r.hello_slab)
    slab_release(&r.proxied_slab)
    free(r.scratch_in)
    free(r.scratch_out)
    free(r.scratch_text)
    free(r.tls_in)
    free(r.tls_out)
    free(r.tls_gather)


cdef bint io_watch(io* source) noexcept nogil:
    """Tell epoll once, for all kinds of events, edge-triggered; readiness is remembered in `flags`."""
    cdef epoll_event event
    event.events = <uint32_t>(EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP) | EPOLLET
    event.data.ptr = source
    return epoll_ctl(source.r.epfd, EPOLL_CTL_ADD, source.fd, &event) == 0


cdef void io_mute(io* source) noexcept nogil:
    """Hear no more of bytes that come, only of their end, until io_unmute: each segment would be an event, and in bulk
    there are dozens before the other side takes anything again.
    """
    change_events(source, <uint32_t>(EPOLLOUT | EPOLLRDHUP) | EPOLLET)
    source.flags |= IO_MUTED


cdef void io_unmute(io* source) noexcept nogil:
    """What has come meanwhile is told as well."""
    change_events(source, <uint32_t>(EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP) | EPOLLET)
    source.flags &= ~<uint32_t>IO_MUTED


cdef void change_events(io* source, uint32_t events) noexcept nogil:
    cdef epoll_event event
    event.events = events
    event.data.ptr = source
    epoll_ctl(source.r.epfd, EPOLL_CTL_MOD, source.fd, &event)


cdef void reactor_wake(reactor* r) noexcept nogil:
    cdef uint64_t one = 1
    write(r.wakeup_fd, &one, sizeof(one))


cdef bint reactor_post(reactor* r, command* c) noexcept nogil:
    """Give a command to a reactor, from any thread. The reactor frees it."""
    while True:
        c.next = <command*>lb_load_ptr(&r.commands)
        if lb_cas_ptr(&r.commands, c.next, c):
            break
    # Pairs with the fence in reactor_main: either it sees the command, or we see that it sleeps.
    lb_fence()
    if not lb_load_int(&r.awake):
        reactor_wake(r)
    return True


cdef void run_commands(reactor* r) noexcept nogil:
    cdef command* newest_first
    cdef command* oldest_first = NULL
    cdef command* c
    if lb_load_ptr(&r.commands) == NULL:
        return
    newest_first = <command*>lb_swap_ptr(&r.commands, NULL)
    while newest_first != NULL:
        c = newest_first
        newest_first = c.next
        c.next = oldest_first
        oldest_first = c
    while oldest_first != NULL:
        c = oldest_first
        oldest_first = c.next
        c.run(r, c)
        free(c)


cdef void run_queue(reactor* r) noexcept nogil:
    """Whoever is queued now gets one more call; what they queue anew waits for the next turn."""
    cdef io* source = r.queue_first
    cdef io* following
    r.queue_first = NULL
    r.queue_last = NULL
    while source != NULL:
        following = source.next_queued
        source.flags &= ~<uint32_t>IO_QUEUED
        if not source.flags & IO_DEAD:
            source.ready(source)
        source = following


cdef void run_line(reactor* r) noexcept nogil:
    """The handshakes that wait, as far as this turn's time goes, in the order of the line."""
    cdef io* source
    while r.line_first != NULL and r.handshake_ns_left > 0:
        source = io_first_in_line(r)
        if not source.flags & IO_DEAD:
            r.line_moves = True
            source.ready(source)
            r.line_moves = False


cdef void release_dead(reactor* r) noexcept nogil:
    cdef io* source = r.dead
    cdef io* following
    r.dead = NULL
    while source != NULL:
        following = source.next_dead
        if source.flags & IO_QUEUED:
            source.next_dead = r.dead
            r.dead = source
        else:
            source.release(source)
        source = following


cdef void* reactor_main(void* argument) noexcept nogil:
    cdef reactor* r = <reactor*>argument
    cdef int count, i, timeout
    cdef uint32_t events
    cdef io* source
    cdef uint64_t drained
    while lb_load_int(&r.s.running):
        timeout = 0
        if r.queue_first == NULL and r.line_first == NULL:
            lb_put_int(&r.awake, 0)
            lb_fence()
            if lb_load_ptr(&r.commands) == NULL and not lb_peek_int(&r.waiting_poked):
                timeout = wheel_sleep_ms(&r.timers, monotonic_ns() // 1000000, LONGEST_SLEEP_MS)
        count = epoll_wait(r.epfd, r.events, EVENTS_PER_TURN, timeout)
        lb_put_int(&r.awake, 1)
        r.now_ns = monotonic_ns()
        r.now_ms = r.now_ns // 1000000
        lb_put_i64(&r.heartbeat_ms, r.now_ms)
        lb_store_u64(&r.turn, r.turn + 1)
        lb_fence()  # who sees this turn may free what earlier ones saw: no load of this turn comes before it
        bump(&r.counts.turns)
        r.handshake_ns_left = HANDSHAKE_NS
        run_commands(r)
        if lb_load_ptr(&r.husks) != NULL:
            r.s.take_back(r)
        if lb_peek_int(&r.waiting_poked):
            lb_put_int(&r.waiting_poked, 0)
            r.s.retry_waiting(r)
        if count > 0:
            bump_by(&r.counts.events, <uint64_t>count)
        for i in range(count):
            source = <io*>r.events[i].data.ptr
            if source == NULL:
                read(r.wakeup_fd, &drained, sizeof(drained))
                continue
            if source.flags & IO_DEAD:
                continue
            events = r.events[i].events
            if events & <uint32_t>EPOLLIN:
                source.flags |= IO_READABLE
            if events & <uint32_t>EPOLLOUT:
                source.flags |= IO_WRITABLE
            if events & <uint32_t>EPOLLPRI:
                source.flags |= IO_URGENT | IO_READABLE
            if events & <uint32_t>EPOLLRDHUP:
                source.flags |= IO_HALF_CLOSED | IO_READABLE
            if events & <uint32_t>(EPOLLERR | EPOLLHUP):
                source.flags |= IO_BROKEN | IO_READABLE | IO_WRITABLE
                if events & <uint32_t>EPOLLERR:
                    source.flags |= IO_ERRED
            source.ready(source)
        run_queue(r)
        run_line(r)
        wheel_run(&r.timers, r.now_ms)
        if r.dead != NULL:
            release_dead(r)
    r.s.cut_flows(r)
    r.s.cut_sessions(r)
    r.s.cut_off(r)
    return NULL


cdef void put_random_id(reactor* r, char* out) noexcept nogil:
    """RANDOM_ID_BYTES hexadecimal digits."""
    cdef uint64_t words[2]
    cdef int i
    cdef uint64_t nibble
    words[0] = lb_random(r.random)
    words[1] = lb_random(r.random)
    for i in range(RANDOM_ID_BYTES):
        nibble = (words[i >> 4] >> ((i & 15) * 4)) & 15
        out[i] = <char>(nibble + (c"0" if nibble < 10 else c"a" - 10))
