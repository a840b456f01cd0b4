"""Who the client is, and the headers that tell the endpoint: X-Forwarded-*, X-Real-IP, Forwarded.

Headers of untrusted clients are replaced, those of trusted proxies are kept and extended.
"""
from lb._fastpath.exchange cimport exchange
from lb._fastpath.message cimport head

cdef size_t put_address(char* out, const unsigned char* address) noexcept nogil
cdef bint from_trusted(const exchange* x) noexcept nogil
cdef bint is_secure(const exchange* x, const head* h) noexcept nogil
cdef void add_forwarded(exchange* x, head* h) noexcept nogil
