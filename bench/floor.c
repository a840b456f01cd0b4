/* The floor: the least that a userspace proxy can do for a request.
 *
 *     floor PORT BACKEND_PORT [close|flows]
 *
 * One epoll, edge-triggered and armed once per socket; for each exchange recv, send, recv, send, and nothing else: no
 * parsing, no headers, no routes, no counters, no timeouts. A client connection takes a backend connection from the
 * pool, or makes one, and gives it back when it ends. With `close` it closes the client connection after each answer,
 * which stands for `Connection: close` (the answer must then fit into one recv). With `flows` each client has a backend
 * connection of its own, which ends with it.
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

enum { PAGE_BYTES = 65536, EVENTS = 256, POOL = 16384 };

struct side {
    int fd;
    struct side *peer;        /* NULL: a pooled backend connection */
    int is_client, closed;
    int asked;                /* a client that has sent something after its last answer */
    char *parked;             /* what the peer did not take yet; reading stops meanwhile */
    size_t parked_len;
};

static int poll_fd;
static struct sockaddr_in backend;
static int closing, flows;
static struct side *pool[POOL];
static int pooled;
static struct side *graveyard[EVENTS * 2];
static int buried;

static struct side *watch(int fd)
{
    struct side *side = calloc(1, sizeof *side);
    int on = 1;
    side->fd = fd;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = side};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event);
    return side;
}

/* Freed after the batch of events, which may still name it. */
static void bury(struct side *side)
{
    if (side->closed)
        return;
    side->closed = 1;
    close(side->fd);
    graveyard[buried++] = side;
}

static struct side *take_backend(void)
{
    while (pooled) {
        struct side *side = pool[--pooled];
        if (!side->closed)
            return side;
    }
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return NULL;
    if (connect(fd, (struct sockaddr *)&backend, sizeof backend) && errno != EINPROGRESS) {
        close(fd);
        return NULL;
    }
    return watch(fd);
}

static void end_client(struct side *client)
{
    struct side *side = client->peer;
    bury(client);
    side->peer = NULL;
    if (flows || client->asked || side->parked_len || client->parked_len || pooled == POOL)
        bury(side);
    else
        pool[pooled++] = side;
}

static void end(struct side *side)
{
    if (side->is_client) {
        end_client(side);
        return;
    }
    if (side->peer)
        bury(side->peer);
    else
        for (int i = 0; i < pooled; i++)
            if (pool[i] == side) {
                pool[i] = pool[--pooled];
                break;
            }
    bury(side);
}

/* What was not taken is parked at the source. A backend that is still connecting takes nothing. */
static int push(struct side *from, const char *bytes, size_t len)
{
    ssize_t sent = send(from->peer->fd, bytes, len, MSG_NOSIGNAL);
    if (sent < 0) {
        if (errno != EAGAIN)
            return -1;
        sent = 0;
    }
    if ((size_t)sent == len)
        return 0;
    char *rest = malloc(len - (size_t)sent);
    memcpy(rest, bytes + sent, len - (size_t)sent);
    free(from->parked);
    from->parked = rest;
    from->parked_len = len - (size_t)sent;
    return 0;
}

static void relay(struct side *from)
{
    static char page[PAGE_BYTES];
    for (;;) {
        if (from->parked_len || !from->peer)
            return;
        ssize_t got = recv(from->fd, page, sizeof page, 0);
        if (got < 0 && errno == EAGAIN)
            return;
        if (got <= 0 || push(from, page, (size_t)got)) {
            end(from);
            return;
        }
        if (from->is_client) {
            from->asked = 1;
        } else {
            from->peer->asked = 0;
            if (closing) {
                end_client(from->peer);
                return;
            }
        }
        if (got < PAGE_BYTES)
            return;             /* edge-triggered: more bytes raise a new event */
    }
}

static void flush(struct side *to)
{
    struct side *from = to->peer;
    if (!from || !from->parked_len)
        return;
    char *bytes = from->parked;
    size_t len = from->parked_len;
    from->parked = NULL;
    from->parked_len = 0;
    int failed = push(from, bytes, len);
    free(bytes);
    if (failed)
        end(from);
    else
        relay(from);
}

static void accept_clients(int listener)
{
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        struct side *server = take_backend();
        if (!server) {
            close(fd);
            continue;
        }
        struct side *client = watch(fd);
        client->is_client = 1;
        client->peer = server;
        server->peer = client;
    }
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: floor PORT BACKEND_PORT [close|flows]\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    address.sin_port = htons((uint16_t)atoi(argv[1]));
    backend = address;
    backend.sin_port = htons((uint16_t)atoi(argv[2]));
    closing = argc > 3 && !strcmp(argv[3], "close");
    flows = argc > 3 && !strcmp(argv[3], "flows");
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) {
        perror("bind");
        return 1;
    }
    poll_fd = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[EVENTS];
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int count = epoll_wait(poll_fd, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            struct side *side = events[i].data.ptr;
            if (!side) {
                accept_clients(listener);
                continue;
            }
            if (side->closed)
                continue;
            if (events[i].events & EPOLLOUT && side->peer && side->peer->parked_len)
                flush(side);
            if (!side->closed && events[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
                if (side->peer)
                    relay(side);
                else if (events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
                    end(side);
            }
        }
        while (buried) {
            struct side *side = graveyard[--buried];
            free(side->parked);
            free(side);
        }
    }
}
