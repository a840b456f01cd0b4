"""What connections of clients have in common whatever they speak: their listener, and the list of those that idle."""
from lb._fastpath.reactor cimport reactor
from lb._fastpath.table cimport listener_view
from lb._fastpath.transport cimport conn

cdef enum:
    CLIENT_LISTED = 512  # conn.flags, in every codec: in the list of idle clients

cdef listener_view* view_of(conn* c) noexcept nogil
cdef void idle_link(conn* c) noexcept nogil
cdef void idle_unlink(conn* c) noexcept nogil
cdef void clients_drain_idle(reactor* r, int reason, int most) noexcept nogil
