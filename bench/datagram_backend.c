/* The endpoint of UDP: sends every datagram back, from the address that it was sent to.
 *
 *     datagram_backend PORT
 *
 * Serves every loopback address (127.0.0.0/8) on PORT, and nothing from outside.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "datagram.h"

int main(int argc, char **argv)
{
    static struct batch batch;
    if (argc != 2) {
        fprintf(stderr, "usage: datagram_backend PORT\n");
        return 2;
    }
    int fd = socket(AF_INET, SOCK_DGRAM, 0), on = 1, room = 8 << 20;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    if (setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "lo", 3) || setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &on, sizeof on) ||
        bind(fd, (struct sockaddr *)&address, sizeof address)) {
        perror("bind");
        return 1;
    }
    for (;;) {
        prepare_batch(&batch, 1);
        int got = recvmmsg(fd, batch.messages, BATCH, MSG_WAITFORONE, NULL);
        for (int i = 0; i < got; i++)
            batch.pieces[i].iov_len = batch.messages[i].msg_len;
        for (int done = 0, sent; done < got; done += sent > 0 ? sent : 1)
            sent = sendmmsg(fd, batch.messages + done, (unsigned)(got - done), 0);
    }
}
