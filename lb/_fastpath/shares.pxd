"""Whose turn it is, laid out beforehand by the weights of an upstream's endpoints: what the algorithms of balance read.

Built by the control plane, without the GIL; immutable afterwards. lb/model/balance.py is the oracle of build_maglev.
"""
from libc.stdint cimport uint32_t, uint64_t

cdef struct lot:
    # One column of an alias table (Walker 1977, Vose 1991): drawing takes as long for 3 endpoints as for 5,000.
    uint32_t share  # of 2^32: how much of the column is its own endpoint's
    uint32_t other  # whose the rest is

cdef uint32_t build_sequence(const int* weights, uint32_t count, uint32_t* result, uint32_t capacity) noexcept nogil
cdef bint build_lots(const int* weights, uint32_t count, lot* result) noexcept nogil
cdef uint32_t* build_maglev(const uint64_t* hashes, const int* weights, uint32_t count, uint32_t* size) noexcept nogil
