"""The classes of credentials.pyx, for the engine, which puts them into tables."""
from lb._fastpath.tls cimport tls_certificate, tls_context, tls_host

cdef class Certificate:
    cdef tls_certificate* p

cdef class ServerTls:
    cdef tls_context* p

cdef class ClientTls:
    cdef tls_context* p
    cdef readonly Certificate certificate

cdef class TlsHost:
    cdef tls_host* p
    cdef readonly ServerTls policy
    cdef readonly tuple certificates
