# The checksum of crc32c.h. Declarations only.
from libc.stdint cimport uint8_t, uint32_t

cdef extern from "crc32c.h" nogil:
    uint32_t lb_crc32c(uint32_t crc, const uint8_t* p, size_t n)
