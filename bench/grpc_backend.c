/* The backend of the gRPC benchmarks: unary calls on HTTP/2 by prior knowledge, on one epoll.
 *
 *     grpc_backend PORT
 *
 * Serves every loopback address (127.0.0.0/8) on PORT. Each call is answered when its message is complete: head, one
 * message, trailers with grpc-status 0. A path that ends in /echo is answered with the request's header fields as lines
 * `name: value`, others with MESSAGE_BYTES bytes. Messages have their five bytes of prefix (gRPC over HTTP/2, Length-
 * Prefixed-Message).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "listener.h"

enum { PREFIX = 5, MESSAGE_BYTES = 123, ECHO_BYTES = 8192, EVENTS = 256, PAGE_BYTES = 65536 };
enum { FRAME_MOST = 9 + 16384 };

struct echo {                 /* of a stream; most have none */
    size_t len;
    uint8_t bytes[ECHO_BYTES];
};

struct connection {
    int fd;
    nghttp2_session *session;
    size_t rest_len;
    uint8_t rest[PAGE_BYTES]; /* what the socket did not take yet */
    struct echo pseudo;       /* the pseudo-header fields of the head that is coming in, before it is known who wants them */
};

static uint8_t message[PREFIX + MESSAGE_BYTES];

static void put_prefix(uint8_t *out, size_t len)
{
    out[0] = 0;               /* not compressed */
    for (int i = 0; i < 4; i++)
        out[1 + i] = (uint8_t)(len >> (24 - 8 * i));
}

static void note_field(struct echo *echo, const uint8_t *name, size_t name_len, const uint8_t *value, size_t value_len)
{
    if (echo->len + name_len + value_len + sizeof ": \r\n" <= ECHO_BYTES)
        echo->len += (size_t)sprintf((char *)echo->bytes + echo->len, "%.*s: %.*s\r\n", (int)name_len, (const char *)name,
                                     (int)value_len, (const char *)value);
}

static int on_head(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    (void)session;
    (void)frame;
    ((struct connection *)user)->pseudo.len = PREFIX;
    return 0;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_len,
                     const uint8_t *value, size_t value_len, uint8_t flags, void *user)
{
    (void)flags;
    struct connection *c = user;
    int32_t stream = frame->hd.stream_id;
    struct echo *echo = nghttp2_session_get_stream_user_data(session, stream);
    if (echo || *name == ':')
        note_field(echo ? echo : &c->pseudo, name, name_len, value, value_len);
    if (name_len == 5 && !memcmp(name, ":path", 5) && value_len >= 5 && !memcmp(value + value_len - 5, "/echo", 5)) {
        echo = malloc(sizeof *echo);
        *echo = c->pseudo;
        nghttp2_session_set_stream_user_data(session, stream, echo);
    }
    return 0;
}

static ssize_t read_message(nghttp2_session *session, int32_t stream, uint8_t *out, size_t room, uint32_t *flags,
                            nghttp2_data_source *source, void *user)
{
    static nghttp2_nv status = {(uint8_t *)"grpc-status", (uint8_t *)"0", 11, 1,
                                NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE};
    struct echo *echo = source->ptr;
    const uint8_t *bytes = echo ? echo->bytes : message;
    size_t len = echo ? echo->len : sizeof message;
    (void)user;
    if (len > room)
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    memcpy(out, bytes, len);
    *flags |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM;
    nghttp2_submit_trailer(session, stream, &status, 1);
    return (ssize_t)len;
}

#define FIELD(name, value) \
    {(uint8_t *)name, (uint8_t *)value, sizeof name - 1, sizeof value - 1, \
     NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    static nghttp2_nv head[] = {FIELD(":status", "200"), FIELD("content-type", "application/grpc")};
    (void)user;
    if ((frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA) ||
        !(frame->hd.flags & NGHTTP2_FLAG_END_STREAM))
        return 0;
    struct echo *echo = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    if (echo)
        put_prefix(echo->bytes, echo->len - PREFIX);
    nghttp2_data_provider provider = {.source.ptr = echo, .read_callback = read_message};
    return nghttp2_submit_response(session, frame->hd.stream_id, head, 2, &provider);
}

static int on_stream_close(nghttp2_session *session, int32_t stream, uint32_t error, void *user)
{
    (void)error;
    (void)user;
    free(nghttp2_session_get_stream_user_data(session, stream));
    return 0;
}

static nghttp2_session *new_session(struct connection *c)
{
    static nghttp2_session_callbacks *callbacks;
    if (!callbacks) {
        nghttp2_session_callbacks_new(&callbacks);
        nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_head);
        nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
        nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
        nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close);
    }
    nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, 1000}};
    nghttp2_session *session;
    nghttp2_session_server_new(&session, callbacks, c);
    nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, settings, 1);
    return session;
}

static void close_connection(struct connection *c)
{
    close(c->fd);
    nghttp2_session_del(c->session);
    free(c);
}

/* What the socket does not take is kept. -1: the connection is gone. */
static int send_bytes(struct connection *c, const uint8_t *bytes, size_t len)
{
    ssize_t sent = send(c->fd, bytes, len, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN)
        return -1;
    size_t taken = sent < 0 ? 0 : (size_t)sent;
    c->rest_len = len - taken;
    if (c->rest_len)
        memmove(c->rest, bytes + taken, c->rest_len);
    return 0;
}

/* All frames that are due, in as few sends as a page allows. */
static int flush(struct connection *c)
{
    static uint8_t page[PAGE_BYTES];
    if (c->rest_len && send_bytes(c, c->rest, c->rest_len))
        return -1;
    while (!c->rest_len) {
        size_t have = 0;
        while (have + FRAME_MOST <= PAGE_BYTES) {
            const uint8_t *frame;
            ssize_t len = nghttp2_session_mem_send(c->session, &frame);
            if (len < 0)
                return -1;
            if (!len)
                break;
            memcpy(page + have, frame, (size_t)len);
            have += (size_t)len;
        }
        if (!have)
            return 0;
        if (send_bytes(c, page, have))
            return -1;
    }
    return 0;
}

static int handle(struct connection *c)
{
    static uint8_t page[PAGE_BYTES];
    ssize_t got;
    do {
        got = recv(c->fd, page, sizeof page, 0);
        if (got == 0 || (got < 0 && errno != EAGAIN))
            return -1;
        if (got > 0 && nghttp2_session_mem_recv(c->session, page, (size_t)got) != got)
            return -1;
    } while (got == PAGE_BYTES);    /* edge-triggered: more bytes raise a new event */
    if (flush(c))
        return -1;
    return nghttp2_session_want_read(c->session) || nghttp2_session_want_write(c->session) ? 0 : -1;
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: grpc_backend PORT\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    put_prefix(message, MESSAGE_BYTES);
    memset(message + PREFIX, 'x', MESSAGE_BYTES);
    int listener = open_listener(atoi(argv[1])), poll = epoll_create1(0), on = 1;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[EVENTS];
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int count = epoll_wait(poll, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            if (c) {
                if (handle(c))
                    close_connection(c);
                continue;
            }
            int fd;
            while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                c = calloc(1, sizeof *c);
                c->fd = fd;
                c->session = new_session(c);
                event = (struct epoll_event){.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
                epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
            }
        }
    }
}
