"""The kernel's TLS: who encrypts what a connection sends (Documentation/networking/tls.rst of Linux)."""
from libc.stdint cimport uint8_t

from lb._fastpath.c.sys cimport ssize_t

cdef int ktls_probe() noexcept nogil
cdef bint ktls_attach(int fd) noexcept nogil
cdef bint ktls_take_keys(int fd, const void* keys) noexcept nogil
cdef ssize_t ktls_send_record(int fd, uint8_t type, const void* data, size_t size) noexcept nogil
