"""gRPC-Web to gRPC and back, for routes that ask for it.

Browsers cannot read HTTP/2 trailers, so gRPC-Web puts them behind the last message, as a frame of their own, and may
have the whole body in base64. Source: gRPC's PROTOCOL-WEB.md.
"""
from lb._fastpath.exchange cimport exchange
from lb._fastpath.message cimport head

cdef void bridge_request(exchange* x, head* h) noexcept nogil
cdef int bridge_request_body(exchange* x, const char* data, size_t size) noexcept nogil
cdef void bridge_response(exchange* x, head* h) noexcept nogil
cdef size_t bridge_response_body(exchange* x, const char* data, size_t size) noexcept nogil
cdef size_t bridge_trailers(exchange* x, const head* trailers) noexcept nogil
