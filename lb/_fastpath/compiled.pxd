"""The classes of compiled.pyx, for the engine, which makes them and publishes them."""
from libc.stdint cimport uint32_t

from lb._fastpath.credentials cimport ClientTls
from lb._fastpath.endpoint cimport endpoint, upstream_live
from lb._fastpath.table cimport (
    datagram_view,
    host_index,
    listener_view,
    name_route,
    network,
    stream_view,
    table,
    tls_view,
    upstream_view,
    vhost,
)

cdef enum:
    MAX_RETRIES = 250

cdef class MaglevTable
cdef class UpstreamView

cdef class Endpoint:
    cdef endpoint* p
    cdef readonly str upstream
    cdef readonly str key
    cdef readonly str admin
    cdef readonly object weight_override

    cdef set_address(self, str address, int port)
    cdef bint unused(self)

cdef class Upstream:
    cdef upstream_live* p
    cdef readonly str name
    cdef readonly dict endpoints
    cdef MaglevTable maglev  # the one made last

cdef class MaglevTable:
    cdef uint32_t* slots
    cdef uint32_t size
    cdef readonly tuple endpoints
    cdef readonly tuple weights

    cdef build(self, UpstreamView view)

cdef class UpstreamView:
    cdef upstream_view* p
    cdef readonly Upstream live
    cdef readonly tuple endpoints
    cdef readonly tuple weights
    cdef readonly tuple model_weights
    cdef readonly tuple policy
    cdef readonly int protocol
    cdef readonly ClientTls tls
    cdef readonly MaglevTable maglev

    cdef look_up_in_table(self)

cdef class HostProgram:
    cdef vhost* p
    cdef readonly str hostname

cdef class HostIndex:
    cdef host_index* p
    cdef readonly dict hosts

cdef class TlsIndex:
    cdef tls_view view
    cdef readonly HostIndex index
    cdef readonly dict hosts

cdef class StreamView:
    cdef stream_view view
    cdef bytes name

cdef class NameIndex:
    cdef readonly HostIndex index
    cdef list parts
    cdef name_route* routes

cdef class ListenerView:
    cdef listener_view* p
    cdef readonly HostIndex index
    cdef readonly str name
    cdef readonly TlsIndex tls
    cdef readonly int https_port
    cdef StreamView stream
    cdef NameIndex names
    cdef datagram_view datagram

    cdef carry_datagrams(self, tuple limits)

cdef class Table:
    cdef table* p
    cdef readonly dict listeners
    cdef readonly dict upstreams
    cdef dict slots
    cdef list places

cdef vhost* program_alloc(size_t size) noexcept
cdef network* make_networks(tuple networks) except NULL
