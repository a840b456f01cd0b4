"""Which endpoint a client was on last: session affinity that outlasts endpoints being added (kube-proxy's ClientIP).

One table for all reactors and upstreams, of a fixed size: a set of a few entries for each hash, of which the one that
was unused longest gives way. No entry is ever waited for. It is made when the first upstream asks for affinity.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from lb._fastpath.reactor cimport reactor, shared
from lb._fastpath.table cimport upstream_view

cdef enum:
    AFFINITY_SETS = 32768
    AFFINITY_WAYS = 8  # two cache lines
    TICK_BITS = 6  # times are told in 64 ms, so that 32 bits last for eight years

cdef struct remembered:
    # Where a client was, for whoever asks.
    uint32_t index  # of the endpoint; NO_SEAT: nowhere, or where there is none any more, or too long ago
    int64_t silent_ms  # since it was chosen last, within a tick

cdef uint64_t affinity_key(const shared* s, upstream_view* up, uint64_t client) noexcept nogil
cdef uint32_t affinity_find(reactor* r, upstream_view* up, uint64_t key) noexcept nogil
cdef void affinity_note(reactor* r, upstream_view* up, uint64_t key, uint32_t i) noexcept nogil
cdef remembered affinity_tell(shared* s, int64_t now_ms, upstream_view* up, uint64_t client) noexcept nogil
