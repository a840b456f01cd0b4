"""Timers: a hashed wheel of intrusive nodes, lazy about deadlines that move away.

A timer that is pushed back (the usual case: a connection that is used again) only gets a new deadline; it stays in
its slot, is looked at there, and moves on. Only one that is pulled nearer is linked anew. Granularity is 16 ms.
"""
from libc.stdint cimport INT64_MAX, int64_t, uint64_t

cdef enum:
    WHEEL_SLOTS = 2048
    WHEEL_WORDS = 32  # bits of which: WHEEL_SLOTS
    # A slot is 16 ms wide, so the wheel turns once in 32 s; what lies further off is looked at once a turn.
    WHEEL_SHIFT = 4

cdef struct timer:
    timer* next
    timer* prev  # NULL: not in the wheel.
    int64_t deadline_ms
    int64_t slot_ms  # When the wheel will look at it: never later than the deadline.
    void (*fire)(timer* t) noexcept nogil
    void* owner

cdef struct wheel:
    int64_t tick  # The next slot to look at, counted from the beginning of time.
    timer slots[WHEEL_SLOTS]  # List heads.
    uint64_t occupied[WHEEL_WORDS]

cdef void wheel_init(wheel* w, int64_t now_ms) noexcept nogil
cdef void wheel_link(wheel* w, timer* t) noexcept nogil
cdef void wheel_run(wheel* w, int64_t now_ms) noexcept nogil
cdef int wheel_sleep_ms(wheel* w, int64_t now_ms, int longest_ms) noexcept nogil

cdef inline void timer_cancel(timer* t) noexcept nogil:
    if t.prev != NULL:
        t.prev.next = t.next
        t.next.prev = t.prev
        t.next = NULL
        t.prev = NULL

cdef inline void timer_set(wheel* w, timer* t, int64_t deadline_ms) noexcept nogil:
    t.deadline_ms = deadline_ms
    if t.prev == NULL:
        wheel_link(w, t)
    elif deadline_ms < t.slot_ms:
        timer_cancel(t)
        wheel_link(w, t)

cdef inline void timer_rest(timer* t) noexcept nogil:
    """Nothing to wait for now, but it will be set again soon: stay in the wheel, don't fire."""
    t.deadline_ms = INT64_MAX
