"""What shares.pxd declares."""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, qsort

cdef enum:
    NOBODY = 0xffffffff

cdef struct candidate:
    # An endpoint while a Maglev table is built.
    uint64_t hash
    uint32_t index
    int weight
    double due  # when its next turn is
    uint32_t at  # the slot it tries then
    uint32_t skip  # from one of its slots to the next


cdef uint32_t build_sequence(const int* weights, uint32_t count, uint32_t* result, uint32_t capacity) noexcept nogil:
    """One period of smooth weighted round-robin (nginx's algorithm): weights 5, 1, 1 give a a b a c a a. Its size.

    Weights whose sum exceeds `capacity` are scaled down to it, each at least 1.
    """
    cdef uint64_t total = 0, common = 0, a, b
    cdef uint32_t i, best, period, made = 0
    cdef int64_t* current
    cdef int64_t* scaled
    for i in range(count):
        if weights[i] > 0:
            total += <uint64_t>weights[i]
            a = <uint64_t>weights[i]
            b = common
            while b:
                a, b = b, a % b
            common = a
    if total == 0:
        return 0
    current = <int64_t*>malloc(2 * count * sizeof(int64_t))
    if current == NULL:
        return 0
    scaled = current + count
    period = 0
    for i in range(count):
        current[i] = 0
        scaled[i] = 0
        if weights[i] > 0:
            scaled[i] = weights[i] // <int64_t>common
            if total // common > capacity:
                scaled[i] = <int64_t>(<uint64_t>weights[i] * (capacity // 2) // total)
                if scaled[i] == 0:
                    scaled[i] = 1
            period += <uint32_t>scaled[i]
    if period > capacity:
        period = capacity
    if period == count:  # all weights equal: plain turns, without the search
        for i in range(count):
            if scaled[i] != 1:
                break
        else:
            for i in range(count):
                result[i] = i
            free(current)
            return period
    total = 0
    for i in range(count):
        total += <uint64_t>scaled[i]
    while made < period:
        best = count
        for i in range(count):
            if scaled[i] == 0:
                continue
            current[i] += scaled[i]
            if best == count or current[i] > current[best]:
                best = i
        current[best] -= <int64_t>total
        result[made] = best
        made += 1
    free(current)
    return period


cdef bint build_lots(const int* weights, uint32_t count, lot* result) noexcept nogil:
    """An alias table: a column drawn evenly, then one of its two endpoints by `share`, is an endpoint drawn by weight.

    False when nobody has any weight, or there is no memory.
    """
    cdef uint64_t total = 0
    cdef uint32_t i, small, large, small_count = 0, large_count = 0
    cdef uint64_t* left
    cdef uint32_t* columns
    for i in range(count):
        total += <uint64_t>weights[i]
    if total == 0:
        return False
    left = <uint64_t*>malloc(count * (sizeof(uint64_t) + sizeof(uint32_t)))
    if left == NULL:
        return False
    columns = <uint32_t*>(left + count)  # those with less than a column's worth from the front, others from the back
    for i in range(count):
        left[i] = <uint64_t>weights[i] * count  # a column holds `total`
        result[i].share = 0
        result[i].other = i
        if left[i] < total:
            columns[small_count] = i
            small_count += 1
        else:
            large_count += 1
            columns[count - large_count] = i
    while small_count and large_count:
        small_count -= 1
        small = columns[small_count]
        large = columns[count - large_count]
        result[small].share = <uint32_t>(<double>left[small] / <double>total * 4294967296.0)
        result[small].other = large
        left[large] -= total - left[small]
        if left[large] < total:
            large_count -= 1
            columns[small_count] = large
            small_count += 1
    free(left)
    return True


cdef uint32_t* build_maglev(const uint64_t* hashes, const int* weights, uint32_t count, uint32_t* size) noexcept nogil:
    """A Maglev table (Eisenbud et al., NSDI 2016, 3.4): in turns each endpoint takes the next free slot of a
    permutation that only its own hash decides. So what one of them had goes to all others when it goes, and they keep
    what they have but for a few. Slots hold indexes.

    An endpoint of weight w has its turns at 0, 1/w, 2/w, ... (the paper's own way of weights), equals in the order of
    their hashes: whoever has the same endpoints has the same table. `size`: 0, or a prime to use; set to the size that
    was used. NULL: nobody has weight (size 0), or there is no memory.
    """
    cdef uint32_t turn, place, taking = 0
    cdef uint32_t* slots = NULL
    cdef uint32_t* heap = NULL  # of candidates, by their next turn
    cdef bint equal = True
    cdef candidate* c
    cdef candidate* candidates = <candidate*>malloc(count * sizeof(candidate))
    if candidates == NULL:
        return NULL
    for place in range(count):
        if weights[place] > 0:
            c = &candidates[taking]
            c.hash = hashes[place]
            c.index = place
            c.weight = weights[place]
            equal = equal and c.weight == candidates[0].weight
            taking += 1
    if size[0] == 0 or taking == 0:
        size[0] = maglev_size(taking)
    if taking > 0:
        heap = <uint32_t*>malloc(taking * sizeof(uint32_t))
        slots = <uint32_t*>malloc(size[0] * sizeof(uint32_t))
    if heap == NULL or slots == NULL or taking > size[0]:
        free(candidates)
        free(heap)
        free(slots)
        return NULL
    qsort(candidates, taking, sizeof(candidate), by_hash)
    for place in range(size[0]):
        slots[place] = NOBODY
    for place in range(taking):
        c = &candidates[place]
        c.due = 0
        c.at = <uint32_t>(c.hash >> 32) % size[0]
        c.skip = <uint32_t>c.hash % (size[0] - 1) + 1
        heap[place] = place
    for turn in range(size[0]):
        c = &candidates[turn % taking if equal else heap[0]]
        while slots[c.at] != NOBODY:
            c.at = (c.at + c.skip) % size[0]
        slots[c.at] = c.index
        if not equal:
            c.due += 1.0 / c.weight
            sift_down(candidates, heap, taking)
    free(candidates)
    free(heap)
    return slots


cdef uint32_t maglev_size(uint32_t count) noexcept nogil:
    """A prime with room for 25 turns of each endpoint, so that equal ones differ by 4 % at most; 0 for none.

    Few sizes far apart: going from one to the next moves nearly every client, so it must not happen often.
    """
    if count == 0:
        return 0
    if count <= 16381 // 25:
        return 16381
    if count <= 131071 // 25:
        return 131071
    return 1048573


cdef int by_hash(const void* a, const void* b) noexcept nogil:
    cdef const candidate* one = <const candidate*>a
    cdef const candidate* other = <const candidate*>b
    if one.hash != other.hash:
        return -1 if one.hash < other.hash else 1
    return -1 if one.index < other.index else 1


cdef void sift_down(const candidate* candidates, uint32_t* heap, uint32_t count) noexcept nogil:
    """Put the first of a heap, whose turn has become later, in its place."""
    cdef uint32_t moved = heap[0], hole = 0, child
    while True:
        child = 2 * hole + 1
        if child >= count:
            break
        if child + 1 < count and is_before(candidates, heap[child + 1], heap[child]):
            child += 1
        if is_before(candidates, moved, heap[child]):
            break
        heap[hole] = heap[child]
        hole = child
    heap[hole] = moved


cdef bint is_before(const candidate* candidates, uint32_t a, uint32_t b) noexcept nogil:
    return candidates[a].due < candidates[b].due or (candidates[a].due == candidates[b].due and a < b)
