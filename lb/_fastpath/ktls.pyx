"""The kernel's TLS (ktls.pxd). Only sending: what is received needs OpenSSL for all that is no data."""
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memset

from lb._fastpath.c.sys cimport (
    AF_INET,
    CMSG_DATA,
    CMSG_LEN,
    EINTR,
    ENOSYS,
    ENOTCONN,
    IPPROTO_TCP,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    SOCK_CLOEXEC,
    SOCK_STREAM,
    TCP_ULP,
    close,
    cmsghdr,
    errno,
    iovec,
    msghdr,
    sendmsg,
    setsockopt,
    socket,
    socklen_t,
    ssize_t,
)

cdef extern from "<linux/tls.h>" nogil:
    int SOL_TLS, TLS_TX, TLS_SET_RECORD_TYPE
    int TLS_CIPHER_AES_GCM_128, TLS_CIPHER_AES_GCM_256, TLS_CIPHER_CHACHA20_POLY1305
    struct tls_crypto_info:
        unsigned short version
        unsigned short cipher_type
    struct tls12_crypto_info_aes_gcm_128:
        pass
    struct tls12_crypto_info_aes_gcm_256:
        pass
    struct tls12_crypto_info_chacha20_poly1305:
        pass

cdef extern from "<openssl/opensslconf.h>" nogil:
    """
    #ifdef OPENSSL_NO_KTLS
    #define LB_OPENSSL_HAS_KTLS 0
    #else
    #define LB_OPENSSL_HAS_KTLS 1
    #endif
    """
    bint LB_OPENSSL_HAS_KTLS


cdef int ktls_probe() noexcept nogil:
    """0 when connections can be given to the kernel, else an error number: ENOENT without the module."""
    cdef int fd, error
    if not LB_OPENSSL_HAS_KTLS:
        return ENOSYS
    fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)
    if fd < 0:
        return errno
    # A socket that is not connected is refused for that, but only after the module was found.
    error = 0 if ktls_attach(fd) or errno == ENOTCONN else errno
    close(fd)
    return error


cdef bint ktls_attach(int fd) noexcept nogil:
    """Put the kernel's TLS on a connected socket; bytes go on as they are until it has keys."""
    return setsockopt(fd, IPPROTO_TCP, TCP_ULP, b"tls", 3) == 0


cdef bint ktls_take_keys(int fd, const void* keys) noexcept nogil:
    """Encrypt what is written from now on. `keys`: a tls_crypto_info with what its cipher needs behind it. False: the
    kernel does not know the cipher or the version.
    """
    cdef int cipher = (<const tls_crypto_info*>keys).cipher_type
    cdef size_t size
    if cipher == TLS_CIPHER_AES_GCM_128:
        size = sizeof(tls12_crypto_info_aes_gcm_128)
    elif cipher == TLS_CIPHER_AES_GCM_256:
        size = sizeof(tls12_crypto_info_aes_gcm_256)
    elif cipher == TLS_CIPHER_CHACHA20_POLY1305:
        size = sizeof(tls12_crypto_info_chacha20_poly1305)
    else:
        return False
    return setsockopt(fd, SOL_TLS, TLS_TX, keys, <socklen_t>size) == 0


cdef ssize_t ktls_send_record(int fd, uint8_t type, const void* data, size_t size) noexcept nogil:
    """One record of a content type (RFC 8446 5.1) other than data: alerts and messages of the handshake."""
    cdef uint64_t control[3]  # a cmsghdr with one byte, as it wants to be aligned
    cdef cmsghdr* header = <cmsghdr*>control
    cdef iovec piece
    cdef msghdr message
    cdef ssize_t sent
    memset(control, 0, sizeof(control))
    header.cmsg_level = SOL_TLS
    header.cmsg_type = TLS_SET_RECORD_TYPE
    header.cmsg_len = CMSG_LEN(1)
    CMSG_DATA(header)[0] = type
    piece.iov_base = <void*>data
    piece.iov_len = size
    memset(&message, 0, sizeof(message))
    message.msg_iov = &piece
    message.msg_iovlen = 1
    message.msg_control = control
    message.msg_controllen = header.cmsg_len
    while True:
        sent = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT)
        if sent >= 0 or errno != EINTR:
            return sent
