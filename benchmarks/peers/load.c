/* A closed-loop load generator as a plain epoll loop in C; every reply is compared.
 *
 *     cc -O2 -o load load.c
 *     ./load PORT CONNECTIONS SECONDS [IN_FLIGHT [SHORTEST [LONGEST]]]
 *
 * A connection sends IN_FLIGHT frames at once, reads as many replies, compares all their
 * bytes with what has to come back, and begins again. Payloads hold random bytes, SHORTEST
 * to LONGEST of them (3). Once each connection has been answered it prints "started" and
 * measures, until a reply has come at least; then it prints one line of JSON, and ends when
 * all that is in flight has come.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HEADER = 5, READ = 262144, EVENTS = 1024, MOST_BLOCKS = 64, PATIENCE_MS = 20000 };
static const size_t MEMORY = 64 << 20; /* of all blocks, in bytes */

struct block { /* what is sent at once, and what has to come back */
    char *requests, *replies;
    size_t size;
};

struct peer {
    int fd;
    const struct block *block;
    size_t sent, received;
    int answered; /* once at least */
};

static int poller;

static void fail(const char *what) {
    if (errno) perror(what);
    else fprintf(stderr, "%s\n", what);
    exit(1);
}

static double seconds(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

static uint32_t chance(void) {
    static uint32_t state = 2463534242u; /* xorshift of G. Marsaglia, 2003 */
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state;
}

static struct block make_block(int frames, size_t shortest, size_t longest) {
    struct block block = {0};
    size_t room = frames * (HEADER + longest) + 1;
    block.requests = malloc(room);
    block.replies = malloc(room);
    if (!block.requests || !block.replies) fail("malloc");
    for (int i = 0; i < frames; i++) {
        size_t length = shortest + chance() % (longest - shortest + 1);
        char *request = block.requests + block.size, *reply = block.replies + block.size;
        sprintf(request, "%05zu", length);
        memcpy(reply, request, HEADER);
        for (size_t j = 0; j < length; j++)
            request[HEADER + j] = reply[HEADER + length - 1 - j] = (char)chance();
        block.size += HEADER + length;
    }
    return block;
}

static void watch(struct peer *peer, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = peer};
    if (epoll_ctl(poller, operation, peer->fd, &event)) fail("epoll_ctl");
}

static void send_block(struct peer *peer, int waited) {
    const struct block *block = peer->block;
    ssize_t taken = send(peer->fd, block->requests + peer->sent, block->size - peer->sent, 0);
    if (taken < 0 && errno != EAGAIN) fail("a connection was lost");
    if (taken > 0) peer->sent += (size_t)taken;
    int left = peer->sent < block->size;
    if (left != waited) watch(peer, EPOLL_CTL_MOD, left ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

/* Whether all replies to a block have come. */
static int receive(struct peer *peer) {
    static char bytes[READ];
    size_t missing = peer->block->size - peer->received;
    ssize_t got = recv(peer->fd, bytes, missing < READ ? missing : READ, 0);
    if (got < 0 && errno == EAGAIN) return 0;
    if (got < 0) fail("a connection was lost");
    errno = 0;
    if (!got) fail("the server closed a connection");
    if (memcmp(bytes, peer->block->replies + peer->received, (size_t)got)) fail("a wrong reply");
    peer->received += (size_t)got;
    return peer->received == peer->block->size;
}

static void make_connection(struct peer *peer, int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    /* An address of its own for each run: ports of earlier ones may be in TIME_WAIT. */
    struct sockaddr_in own = {.sin_family = AF_INET};
    own.sin_addr.s_addr = htonl(0x7f000002u + (uint32_t)getpid() % 0xfffff0u);
    int on = 1;
    peer->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (peer->fd < 0) fail("cannot open a socket");
    setsockopt(peer->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    if (bind(peer->fd, (struct sockaddr *)&own, sizeof own)) fail("cannot bind");
    if (connect(peer->fd, (struct sockaddr *)&address, sizeof address)) fail("cannot connect");
    setsockopt(peer->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

int main(int argc, char **argv) {
    if (argc < 4) fail("usage: load PORT CONNECTIONS SECONDS [IN_FLIGHT [SHORTEST [LONGEST]]]");
    int port = atoi(argv[1]), count = atoi(argv[2]);
    int in_flight = argc > 4 ? atoi(argv[4]) : 1;
    size_t shortest = argc > 5 ? strtoul(argv[5], NULL, 10) : 3;
    size_t longest = argc > 6 ? strtoul(argv[6], NULL, 10) : shortest;
    double duration = atof(argv[3]);
    if (count < 1 || in_flight < 1 || shortest < 1 || longest < shortest || longest > 99999)
        fail("expected 1 or more connections and frames, and 1 to 99999 bytes");
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);

    size_t blocks_count = MEMORY / (2 * in_flight * (HEADER + longest)) + 1;
    if (blocks_count > MOST_BLOCKS) blocks_count = MOST_BLOCKS;
    struct block blocks[MOST_BLOCKS];
    for (size_t i = 0; i < blocks_count; i++) blocks[i] = make_block(in_flight, shortest, longest);

    poller = epoll_create1(0);
    struct peer *peers = calloc(count, sizeof *peers);
    if (!peers) fail("calloc");
    for (int i = 0; i < count; i++) {
        peers[i].block = &blocks[i % blocks_count];
        make_connection(&peers[i], port);
    }
    for (int i = 0; i < count; i++) {
        fcntl(peers[i].fd, F_SETFL, O_NONBLOCK);
        watch(&peers[i], EPOLL_CTL_ADD, EPOLLIN);
        send_block(&peers[i], 0);
    }

    static struct epoll_event events[EVENTS];
    int waiting = count, unanswered = count, measuring = 0, ending = 0;
    double start = 0, end = 0, cpu = 0, now = 0;
    long done = 0;
    while (waiting) {
        int found = epoll_wait(poller, events, EVENTS, PATIENCE_MS);
        errno = 0;
        if (found <= 0) fail("the server answers no more");
        for (int i = 0; i < found; i++) {
            struct peer *peer = events[i].data.ptr;
            if (events[i].events & EPOLLOUT) send_block(peer, 1);
            if (!(events[i].events & ~EPOLLOUT) || !receive(peer)) continue;
            done += in_flight;
            peer->sent = peer->received = 0;
            if (!peer->answered) {
                peer->answered = 1;
                unanswered--;
            }
            if (ending) waiting--;
            else send_block(peer, 0);
        }
        now = seconds(CLOCK_MONOTONIC);
        if (!measuring && !unanswered) {
            measuring = 1;
            printf("started\n");
            fflush(stdout);
            start = now;
            cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
            done = 0;
        } else if (done && measuring && !ending && now >= start + duration) {
            ending = 1;
            end = now;
            cpu = seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu;
            printf("{\"requests\": %ld, \"seconds\": %.6f, \"cpu_seconds\": %.6f}\n", done,
                   end - start, cpu);
            fflush(stdout);
        }
    }
    return 0;
}
