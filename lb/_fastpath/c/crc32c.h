/* CRC32C (Castagnoli, reflected polynomial 0x82f63b78; RFC 4960 Appendix B), a byte at a time: headers are short. */
#ifndef LB_CRC32C_H
#define LB_CRC32C_H

#include <stddef.h>
#include <stdint.h>

static uint32_t lb_crc32c_table[256];

__attribute__((constructor)) static void lb_init_crc32c(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t value = byte;
        for (int bit = 0; bit < 8; bit++) value = value & 1 ? value >> 1 ^ 0x82f63b78u : value >> 1;
        lb_crc32c_table[byte] = value;
    }
}

/* Go on with a checksum, which begins as ~0 and ends inverted. */
static inline uint32_t lb_crc32c(uint32_t crc, const uint8_t *p, size_t n) {
    for (size_t i = 0; i < n; i++) crc = crc >> 8 ^ lb_crc32c_table[(crc ^ p[i]) & 255];
    return crc;
}

#endif
