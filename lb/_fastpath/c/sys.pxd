# The operating system and base.h as Cython sees them. Declarations only.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "base.h" nogil:
    # sockets
    ctypedef unsigned int socklen_t
    ctypedef unsigned short sa_family_t
    ctypedef long ssize_t
    struct sockaddr:
        sa_family_t sa_family
    struct in_addr:
        uint32_t s_addr
    struct in6_addr:
        uint8_t s6_addr[16]
    struct sockaddr_in:
        sa_family_t sin_family
        uint16_t sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        sa_family_t sin6_family
        uint16_t sin6_port
        in6_addr sin6_addr
    struct sockaddr_un:
        sa_family_t sun_family
        char sun_path[108]
    struct sockaddr_storage:
        sa_family_t ss_family
    struct iovec:
        void* iov_base
        size_t iov_len
    struct msghdr:
        void* msg_name
        socklen_t msg_namelen
        void* msg_control
        size_t msg_controllen
        int msg_flags
        iovec* msg_iov
        size_t msg_iovlen
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    struct in_pktinfo:
        int ipi_ifindex
        in_addr ipi_spec_dst
        in_addr ipi_addr
    struct in6_pktinfo:
        in6_addr ipi6_addr
        unsigned int ipi6_ifindex
    struct linger_option "linger":
        int l_onoff
        int l_linger
    int AF_INET, AF_INET6, AF_UNIX, SOCK_STREAM, SOCK_DGRAM, SOCK_NONBLOCK, SOCK_CLOEXEC
    int SOL_SOCKET, SO_ERROR, SO_KEEPALIVE, SO_LINGER
    int MSG_NOSIGNAL, MSG_DONTWAIT, MSG_PEEK, MSG_TRUNC, SHUT_WR, IPPROTO_TCP, TCP_NODELAY, TCP_ULP
    int IPPROTO_IP, IPPROTO_IPV6, IPPROTO_UDP, IP_PKTINFO, IPV6_PKTINFO, IPV6_RECVPKTINFO, SOL_UDP, UDP_GRO, UDP_SEGMENT
    int SO_RCVBUF, SO_TYPE, SO_MEMINFO
    enum:
        LB_SK_MEMINFO_DROPS "SK_MEMINFO_DROPS"
        LB_SK_MEMINFO_VARS "SK_MEMINFO_VARS"
    int SO_REUSEADDR, IP_TRANSPARENT, IPV6_TRANSPARENT, IP_BIND_ADDRESS_NO_PORT
    int socket(int domain, int type, int protocol)
    int connect(int fd, const sockaddr* address, socklen_t size)
    int bind(int fd, const sockaddr* address, socklen_t size)
    int accept4(int fd, sockaddr* address, socklen_t* size, int flags)
    int getsockname(int fd, sockaddr* address, socklen_t* size)
    int getsockopt(int fd, int level, int name, void* value, socklen_t* size)
    int setsockopt(int fd, int level, int name, const void* value, socklen_t size)
    int shutdown(int fd, int how)
    ssize_t recv(int fd, void* buffer, size_t size, int flags)
    ssize_t send(int fd, const void* buffer, size_t size, int flags)
    ssize_t sendmsg(int fd, const msghdr* message, int flags)
    int recvmmsg(int fd, mmsghdr* messages, unsigned int count, int flags, void* timeout)
    int sendmmsg(int fd, mmsghdr* messages, unsigned int count, int flags)
    ssize_t write(int fd, const void* buffer, size_t size)
    ssize_t read(int fd, void* buffer, size_t size)
    int close(int fd)
    unsigned char* CMSG_DATA(cmsghdr* header)
    cmsghdr* CMSG_FIRSTHDR(msghdr* message)
    cmsghdr* CMSG_NXTHDR(msghdr* message, cmsghdr* header)
    size_t CMSG_LEN(size_t size)
    size_t CMSG_SPACE(size_t size)
    int getentropy(void* buffer, size_t size)
    int dup(int fd)
    uint16_t ntohs(uint16_t value)
    uint16_t htons(uint16_t value)
    const char* inet_ntop(int family, const void* source, char* target, socklen_t size)
    int inet_pton(int family, const char* source, void* target)
    int fcntl(int fd, int command, ...)
    int F_DUPFD_CLOEXEC, F_GETFL, F_SETFL, F_SETPIPE_SZ, O_CLOEXEC, O_NONBLOCK
    int pipe2(int* ends, int flags)
    ssize_t splice(int source, void* source_offset, int sink, void* sink_offset, size_t size, unsigned int flags)
    unsigned int SPLICE_F_MOVE, SPLICE_F_NONBLOCK
    int errno
    int EADDRNOTAVAIL, EAGAIN, EINTR, EINVAL, EINPROGRESS, EIO, EMFILE, EMSGSIZE, ENFILE, ENOBUFS, ENOENT, ENOMEM
    int ENOSYS, ENOTCONN, ECONNABORTED, EPIPE, ECONNRESET

    # poll: of a single socket
    struct pollfd:
        int fd
        short events
        short revents
    int POLLOUT, POLLRDHUP, POLLHUP, POLLERR
    int poll(pollfd* fds, unsigned long count, int timeout)
    # epoll and eventfd
    ctypedef union epoll_data_t:
        void* ptr
        int fd
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP, EPOLLHUP, EPOLLERR
    int EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLL_CLOEXEC
    uint32_t EPOLLET
    int EFD_CLOEXEC, EFD_NONBLOCK
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int operation, int fd, epoll_event* event)
    int epoll_wait(int epfd, epoll_event* events, int maximum, int timeout)
    int eventfd(unsigned int initial, int flags)

    # threads and time
    ctypedef unsigned long pthread_t
    int pthread_create(pthread_t* thread, void* attributes, void* (*start)(void*) noexcept nogil, void* argument)
    int pthread_join(pthread_t thread, void** result)
    int pthread_setname_np(pthread_t thread, const char* name)
    struct timespec:
        long tv_sec
        long tv_nsec
    struct tm:
        int tm_sec
        int tm_min
        int tm_hour
        int tm_mday
        int tm_mon
        int tm_year
        int tm_wday
    int CLOCK_MONOTONIC, CLOCK_REALTIME
    int clock_gettime(int clock, timespec* result)
    int nanosleep(const timespec* request, timespec* remaining)
    tm* gmtime_r(const long* seconds, tm* result)

    # base.h
    void lb_prefetch(const void* p)
    void* lb_huge_alloc(size_t size)
    void* lb_line_alloc(size_t size)
    int lb_load_int "lb_load"(int* p)
    uint64_t lb_load_u64 "lb_load"(uint64_t* p)
    void* lb_load_ptr "lb_load"(void** p)
    void lb_store_int "lb_store"(int* p, int value)
    void lb_store_u64 "lb_store"(uint64_t* p, uint64_t value)
    void lb_store_ptr "lb_store"(void** p, void* value)
    int lb_peek_int "lb_peek"(int* p)
    int64_t lb_peek_i64 "lb_peek"(int64_t* p)
    uint64_t lb_peek_u64 "lb_peek"(uint64_t* p)
    void lb_put_int "lb_put"(int* p, int value)
    void lb_put_i64 "lb_put"(int64_t* p, int64_t value)
    void lb_put_u64 "lb_put"(uint64_t* p, uint64_t value)
    int lb_add_int "lb_add"(int* p, int value)
    int64_t lb_add_i64 "lb_add"(int64_t* p, int64_t value)
    uint64_t lb_add_u64 "lb_add"(uint64_t* p, uint64_t value)
    int lb_add_ordered_int "lb_add_ordered"(int* p, int value)
    void* lb_swap_ptr "lb_swap"(void** p, void* value)
    int lb_swap_int "lb_swap"(int* p, int value)
    void lb_fence()
    int lb_cas_ptr(void** p, void* expected, void* desired)
    int lb_cas_u64(uint64_t* p, uint64_t expected, uint64_t desired)
    int lb_cas_i64(int64_t* p, int64_t expected, int64_t desired)
    int lb_try_lock(int* lock)
    void lb_unlock(int* lock)
    int LB_TOKEN, LB_VALUE, LB_TARGET, LB_UNRESERVED, LB_HEX, LB_DIGIT
    uint8_t lb_class[256]
    uint8_t lb_lower[256]
    signed char lb_hexval[256]
    bint lb_writable(int fd, int timeout_ms)
    size_t lb_value_run(const char* p, size_t n)
    bint lb_equal_nocase(const char* a, const char* lower, size_t n)
    uint64_t lb_hash(const char* p, size_t n)
    uint64_t lb_keyed_hash(const char* p, size_t n, uint64_t secret)
    uint64_t LB_GOLDEN
    uint64_t lb_mix(uint64_t h)
    uint64_t lb_random(uint64_t* state)
    double log(double value)

cdef extern from "reasons.h" nogil:
    int LB_REASON_COUNT
    const char* lb_reason_names[]
    const short lb_reason_statuses[]
    int LB_R_OK, LB_R_LOCAL_ANSWER, LB_R_CLIENT_CLOSED, LB_R_CLIENT_RESET, LB_R_KEEPALIVE_TIMEOUT, LB_R_HEAD_TIMEOUT
    int LB_R_CLIENT_IDLE_TIMEOUT, LB_R_NOT_HTTP, LB_R_BAD_REQUEST_LINE, LB_R_BAD_METHOD, LB_R_METHOD_REFUSED
    int LB_R_BAD_TARGET, LB_R_BAD_VERSION, LB_R_BAD_HEADER, LB_R_BAD_HOST, LB_R_HOST_MISMATCH, LB_R_BAD_FRAMING
    int LB_R_BAD_CHUNK, LB_R_BAD_TRANSFER_CODING, LB_R_BAD_EXPECTATION, LB_R_HEAD_TOO_LARGE, LB_R_TOO_MANY_HEADERS
    int LB_R_TARGET_TOO_LONG, LB_R_BAD_GRPC_WEB, LB_R_BODY_TOO_LARGE
    int LB_R_BAD_CLIENT_HELLO, LB_R_UNRECOGNIZED_NAME, LB_R_NO_APPLICATION_PROTOCOL
    int LB_R_NO_HOST, LB_R_NO_ROUTE, LB_R_NO_UPSTREAM, LB_R_NO_ENDPOINT, LB_R_NO_HEALTHY_ENDPOINT
    int LB_R_SOURCE_REFUSED, LB_R_FLOW_TIMEOUT, LB_R_HALF_CLOSED_TIMEOUT, LB_R_ENDPOINT_REMOVED
    int LB_R_SESSION_TIMEOUT, LB_R_SESSION_EVICTED, LB_R_ENDPOINT_UNHEALTHY, LB_R_LISTENER_REMOVED
    int LB_R_DATAGRAM_TRUNCATED, LB_R_DATAGRAM_TOO_LONG, LB_R_RECEIVE_BUFFER_FULL, LB_R_SEND_BUFFER_FULL
    int LB_R_CLIENT_UNREACHABLE
    int LB_R_BAD_PROXY_HEADER, LB_R_PROXY_HEADER_TIMEOUT
    int LB_R_QUEUE_FULL, LB_R_QUEUE_TIMEOUT, LB_R_CONNECT_FAILED, LB_R_CONNECT_TIMEOUT, LB_R_UPSTREAM_CLOSED
    int LB_R_UPSTREAM_RESET, LB_R_UPSTREAM_REFUSED, LB_R_UPSTREAM_TRUNCATED, LB_R_BAD_RESPONSE, LB_R_RESPONSE_TOO_LARGE
    int LB_R_RESPONSE_TIMEOUT, LB_R_UPSTREAM_IDLE_TIMEOUT, LB_R_REQUEST_TIMEOUT, LB_R_GRPC_DEADLINE, LB_R_TUNNEL_TIMEOUT
    int LB_R_TOO_MANY_CONNECTIONS, LB_R_TOO_MANY_FROM_CLIENT, LB_R_NO_DESCRIPTORS, LB_R_NO_MEMORY, LB_R_PRESSURE
    int LB_R_NO_PORT
    int LB_R_CONNECTION_RATE, LB_R_CLIENT_CONNECTION_RATE, LB_R_NO_CLIENT_ADDRESS, LB_R_TRANSPARENCY_REFUSED
    int LB_R_ENDED_BY_OPERATOR
    int LB_R_DRAIN, LB_R_SHUTDOWN, LB_R_TLS_HANDSHAKE_FAILED, LB_R_TLS_TIMEOUT, LB_R_PLAIN_HTTP, LB_R_MISDIRECTED
    int LB_R_UPSTREAM_TLS_FAILED, LB_R_UPSTREAM_PROTOCOL
    int LB_R_BAD_PROTOCOL, LB_R_H2_PROTOCOL_ERROR, LB_R_H2_RAPID_RESET, LB_R_H2_MADE_YOU_RESET, LB_R_H2_STREAM_FLOOD
    int LB_R_H2_CONTROL_FLOOD
    int LB_R_H2_CONTINUATION_FLOOD, LB_R_H2_HEADER_BOMB, LB_R_H2_WINDOW_STALL, LB_R_UPSTREAM_NO_WEBSOCKET
