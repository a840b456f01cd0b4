"""Accepting: listening sockets, admission, and what happens when descriptors run out.

The ladder under pressure: above 90 % of the descriptors the longest idle clients are closed; above 95 %, or when accept
fails for want of descriptors or memory, listening stops for 100 ms instead of spinning, and idle connections make room.
"""
from lb._fastpath.client_hello cimport client_hello
from lb._fastpath.reactor cimport command, reactor
from lb._fastpath.table cimport listener_view, name_route
from lb._fastpath.transport cimport conn, listening

cdef enum:
    ACCEPTS_PER_TURN = 64
    PAUSE_MS = 100
    PRESSURE_BATCH = 32
    QUEUE_MOST = 65535  # so many have connected to a socket that closes, at most (lb/sockets.py, BACKLOG)

cdef const name_route* choose_route(const listener_view* view, const client_hello* hello, bint* known) noexcept nogil
cdef void client_gone(conn* c) noexcept nogil
cdef void log_refused(conn* c, int reason, int status) noexcept nogil
cdef void run_listen(reactor* r, command* c) noexcept nogil
cdef void run_pass_listener(reactor* r, command* c) noexcept nogil
cdef void run_close_listener(reactor* r, command* c) noexcept nogil
cdef void run_stop_accepting(reactor* r, command* c) noexcept nogil
