/* The backend of every benchmark: a minimal HTTP/1.1 keep-alive responder on one epoll.
 *
 *     backend PORT
 *
 * Serves every loopback address (127.0.0.0/8) on PORT. The last path segment says what to answer:
 *
 *     16k, 1m   that many bytes       128-close  128 bytes and `Connection: close`, for the relay that closes its client
 *     echo      the request's head    who        the address that was connected to
 *     others    128 bytes
 *
 * Heads and bodies are made once, so that an answer costs one recv and one send. It reads GET requests only, one at a
 * time per connection, and closes no connection by itself: proxies keep theirs for the whole run.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "listener.h"

enum { HEAD_BYTES = 8192, EVENTS = 256 };

struct answer {
    const char *name;
    size_t name_len;
    char *bytes;
    size_t len;
};

struct connection {
    int fd;
    size_t have;              /* bytes of an incomplete head in `head` */
    const char *rest;         /* what of an answer the socket did not take yet */
    size_t rest_len;
    char *head;               /* only while a head is incomplete */
};

static struct answer answers[4];

static void make_answer(int index, const char *name, size_t body, const char *extra)
{
    char head[256];
    int head_len = snprintf(head, sizeof head,
                            "HTTP/1.1 200 OK\r\nServer: bench\r\nContent-Type: text/plain\r\n"
                            "Date: Mon, 01 Jan 2024 00:00:00 GMT\r\nContent-Length: %zu\r\n%s\r\n", body, extra);
    struct answer *answer = &answers[index];
    answer->name = name;
    answer->name_len = strlen(name);
    answer->len = (size_t)head_len + body;
    answer->bytes = malloc(answer->len);
    memcpy(answer->bytes, head, (size_t)head_len);
    memset(answer->bytes + head_len, 'x', body);
}

static void close_connection(struct connection *c)
{
    close(c->fd);
    free(c->head);
    free(c);
}

/* 0: sent or parked; -1: the connection is gone. */
static int send_bytes(struct connection *c, const char *bytes, size_t len)
{
    while (len) {
        ssize_t sent = send(c->fd, bytes, len, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN)
                return -1;
            break;
        }
        bytes += sent;
        len -= (size_t)sent;
    }
    c->rest = bytes;
    c->rest_len = len;
    return 0;
}

/* Answers that depend on the request; far below the size of a socket buffer. */
static int send_text(struct connection *c, const char *text, size_t len)
{
    char out[HEAD_BYTES + 256];
    int head_len = snprintf(out, 256, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\n\r\n", len);
    memcpy(out + head_len, text, len);
    int result = send_bytes(c, out, (size_t)head_len + len);
    return c->rest_len ? -1 : result;
}

static int answer_request(struct connection *c, const char *head, size_t len)
{
    const char *end = memchr(head + 4, ' ', len > 4 ? len - 4 : 0);
    if (!end)
        return -1;
    const char *segment = memrchr(head, '/', (size_t)(end - head));
    size_t segment_len = segment ? (size_t)(end - ++segment) : 0;
    if (segment_len == 4 && !memcmp(segment, "echo", 4))
        return send_text(c, head, len);
    if (segment_len == 3 && !memcmp(segment, "who", 3)) {
        struct sockaddr_in self;
        socklen_t size = sizeof self;
        getsockname(c->fd, (struct sockaddr *)&self, &size);
        const char *text = inet_ntoa(self.sin_addr);
        return send_text(c, text, strlen(text));
    }
    for (int i = 1; i < 4; i++)
        if (segment_len == answers[i].name_len && !memcmp(segment, answers[i].name, segment_len))
            return send_bytes(c, answers[i].bytes, answers[i].len);
    return send_bytes(c, answers[0].bytes, answers[0].len);
}

static int handle(struct connection *c)
{
    static char page[HEAD_BYTES];
    if (c->rest_len)
        return send_bytes(c, c->rest, c->rest_len);
    for (;;) {
        char *buffer = page;
        if (c->have)
            memcpy(page, c->head, c->have);
        ssize_t got = recv(c->fd, buffer + c->have, HEAD_BYTES - c->have, 0);
        if (got == 0)
            return -1;
        if (got < 0)
            return errno == EAGAIN ? 0 : -1;
        size_t have = c->have + (size_t)got;
        if (have >= 4 && !memcmp(buffer + have - 4, "\r\n\r\n", 4)) {
            c->have = 0;
            if (answer_request(c, buffer, have))
                return -1;
            return 0;           /* edge-triggered: the next request raises a new event */
        }
        if (have == HEAD_BYTES)
            return -1;
        if (!c->head)
            c->head = malloc(HEAD_BYTES);
        memcpy(c->head, buffer, have);
        c->have = have;
    }
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: backend PORT\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    make_answer(0, "128", 128, "");
    make_answer(1, "16k", 16 << 10, "");
    make_answer(2, "1m", 1 << 20, "");
    make_answer(3, "128-close", 128, "Connection: close\r\n");
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
                event = (struct epoll_event){.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
                epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
            }
        }
    }
}
