"""The wheel of timers.pxd."""
from libc.stdint cimport INT64_MAX, int64_t, uint64_t


cdef extern from *:
    """
    static inline int lb_ctz64(unsigned long long x) { return __builtin_ctzll(x); }
    """
    int lb_ctz64(uint64_t x) nogil


cdef void wheel_init(wheel* w, int64_t now_ms) noexcept nogil:
    cdef int i
    w.tick = now_ms >> WHEEL_SHIFT
    for i in range(WHEEL_SLOTS):
        w.slots[i].next = &w.slots[i]
        w.slots[i].prev = &w.slots[i]
    for i in range(WHEEL_WORDS):
        w.occupied[i] = 0


cdef void wheel_link(wheel* w, timer* t) noexcept nogil:
    # Rounded up, so that a timer is never looked at before its deadline only to be put back.
    cdef int64_t tick = (t.deadline_ms >> WHEEL_SHIFT) + 1
    if t.deadline_ms == INT64_MAX or tick > w.tick + WHEEL_SLOTS - 1:
        tick = w.tick + WHEEL_SLOTS - 1
    if tick < w.tick:
        tick = w.tick
    cdef int slot = <int>(tick & (WHEEL_SLOTS - 1))
    cdef timer* head = &w.slots[slot]
    t.slot_ms = tick << WHEEL_SHIFT
    t.prev = head.prev
    t.next = head
    head.prev.next = t
    head.prev = t
    w.occupied[slot >> 6] |= <uint64_t>1 << (slot & 63)


cdef void wheel_run(wheel* w, int64_t now_ms) noexcept nogil:
    """Fire what is due. A timer's `fire` may set, cancel or free any timer, its own included."""
    cdef int64_t last = now_ms >> WHEEL_SHIFT
    cdef timer* t
    cdef timer pending
    cdef int slot
    if last - w.tick >= WHEEL_SLOTS:  # slept longer than a turn: each slot once is enough
        w.tick = last - WHEEL_SLOTS + 1
    while w.tick <= last:
        slot = <int>(w.tick & (WHEEL_SLOTS - 1))
        w.tick += 1
        if not (w.occupied[slot >> 6] >> (slot & 63)) & 1:
            continue
        w.occupied[slot >> 6] &= ~(<uint64_t>1 << (slot & 63))
        if w.slots[slot].next == &w.slots[slot]:
            continue
        # Move the slot's list aside: what is put back into this slot belongs to the wheel's next turn.
        pending.next = w.slots[slot].next
        pending.prev = w.slots[slot].prev
        pending.next.prev = &pending
        pending.prev.next = &pending
        w.slots[slot].next = &w.slots[slot]
        w.slots[slot].prev = &w.slots[slot]
        while pending.next != &pending:
            t = pending.next
            timer_cancel(t)
            if t.deadline_ms > now_ms:
                wheel_link(w, t)
            else:
                t.fire(t)


cdef int wheel_sleep_ms(wheel* w, int64_t now_ms, int longest_ms) noexcept nogil:
    """How long the loop may sleep before wheel_run has something to look at."""
    cdef int ahead = 0, slot, width
    cdef uint64_t word
    cdef int64_t due
    cdef int reach = (longest_ms >> WHEEL_SHIFT) + 2
    while ahead < reach:
        slot = <int>((w.tick + ahead) & (WHEEL_SLOTS - 1))
        word = w.occupied[slot >> 6] >> (slot & 63)
        width = 64 - (slot & 63)
        if word != 0:
            due = ((w.tick + ahead + lb_ctz64(word)) << WHEEL_SHIFT) - now_ms
            if due < 0:
                return 0
            return <int>due if due < longest_ms else longest_ms
        ahead += width
    return longest_ms
