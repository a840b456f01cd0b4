/* The endpoint of everything that is only carried by TCP: one epoll.
 *
 *     stream_backend PORT
 *
 * Serves every loopback address (127.0.0.0/8) on PORT. The first byte of a connection says what it does:
 *
 *     e     sends back what comes, that byte included; messages are small, and only one is under way
 *     d     sends the pattern (pattern.h) until its client ends its half
 *     u     compares what comes with the pattern, and answers its end with the number of bytes (64 bits, native order);
 *           wrong ones end the connection without an answer
 *
 * A connection ends when its client has ended it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "listener.h"
#include "pattern.h"

enum { EVENTS = 256, ECHO = 'e', DOWN = 'd', UP = 'u' };

struct connection {
    int fd;
    int kind;                 /* 0: nothing has come yet */
    uint64_t place;           /* in the pattern */
};

static unsigned char page[PATTERN_MOST];
static int poll_fd;

/* Whether the connection goes on. */
static int echo(struct connection *c, ssize_t got)
{
    return send(c->fd, page, (size_t)got, MSG_NOSIGNAL) == got;
}

static int check(struct connection *c, const unsigned char *bytes, size_t size)
{
    int same = !memcmp(bytes, pattern_at(c->place), size);
    c->place += size;
    return same;
}

static int feed(struct connection *c)
{
    ssize_t sent = send(c->fd, pattern_at(c->place), PATTERN_MOST, MSG_NOSIGNAL);
    if (sent < 0)
        return errno == EAGAIN;
    c->place += (uint64_t)sent;
    return 1;
}

static int begin(struct connection *c, ssize_t got)
{
    c->kind = page[0];
    if (c->kind == ECHO)
        return echo(c, got);
    if (c->kind == UP)
        return check(c, page + 1, (size_t)got - 1);
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.ptr = c};
    epoll_ctl(poll_fd, EPOLL_CTL_MOD, c->fd, &event);
    return c->kind == DOWN;
}

static int handle(struct connection *c, uint32_t events)
{
    if (events & EPOLLOUT && !feed(c))
        return 0;
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
        return 1;
    ssize_t got = recv(c->fd, page, sizeof page, 0);
    if (got < 0)
        return errno == EAGAIN;
    if (!got && c->kind == UP && send(c->fd, &c->place, sizeof c->place, MSG_NOSIGNAL) < 0)
        perror("send");
    if (!got)
        return 0;
    return c->kind == ECHO ? echo(c, got) : c->kind == UP ? check(c, page, (size_t)got) : !c->kind && begin(c, got);
}

static void accept_all(int listener)
{
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        struct connection *c = calloc(1, sizeof *c);
        c->fd = fd;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event);
    }
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: stream_backend PORT\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    make_pattern();
    int listener = open_listener(atoi(argv[1]));
    poll_fd = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[EVENTS];
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int count = epoll_wait(poll_fd, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            if (!c) {
                accept_all(listener);
            } else if (!handle(c, events[i].events)) {
                close(c->fd);
                free(c);
            }
        }
    }
}
