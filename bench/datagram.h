/* Batches of datagrams that both ends of the UDP figures use. */
#include <netinet/in.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>

enum { BATCH = 64, DATAGRAM_BYTES = 64, ROOM_BYTES = 2048, CONTROL_BYTES = 64 };

struct batch {
    struct mmsghdr messages[BATCH];
    struct iovec pieces[BATCH];
    struct sockaddr_in addresses[BATCH];
    char control[BATCH][CONTROL_BYTES];
    unsigned char bytes[BATCH][ROOM_BYTES];
};

/* With its address and the address that it was sent to, where `named`. */
static void prepare_batch(struct batch *b, int named)
{
    for (int i = 0; i < BATCH; i++) {
        struct msghdr *head = &b->messages[i].msg_hdr;
        b->pieces[i] = (struct iovec){.iov_base = b->bytes[i], .iov_len = ROOM_BYTES};
        *head = (struct msghdr){.msg_iov = &b->pieces[i], .msg_iovlen = 1};
        if (named) {
            head->msg_name = &b->addresses[i];
            head->msg_namelen = sizeof b->addresses[i];
            head->msg_control = b->control[i];
            head->msg_controllen = CONTROL_BYTES;
        }
    }
}
