/* The framed reverse server as a plain epoll loop in C: how fast this work can go.
 *
 *     cc -O2 -o server server.c && ./server [PORT]
 *
 * Level-triggered. All whole frames of a read are answered by one send; what the
 * kernel does not take is kept, and nothing is read from that peer until it is gone.
 * A bad header ends the connection after the replies to the frames before it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HEADER = 5, LONGEST = HEADER + 99999, READ = 131072, EVENTS = 1024 };

struct buffer {
    char *bytes;
    size_t length;
};

struct connection {
    struct buffer part;   /* of a frame that is not whole yet */
    struct buffer unsent; /* of replies */
    int ending;           /* after what is unsent */
};

static char input[LONGEST + READ], output[LONGEST + READ];
static struct connection *connections;
static int poller;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void keep(struct buffer *buffer, const char *bytes, size_t length) {
    char *copy = NULL;
    if (length) {
        copy = malloc(length);
        if (!copy) fail("malloc");
        memcpy(copy, bytes, length);
    }
    free(buffer->bytes);
    buffer->bytes = copy;
    buffer->length = length;
}

static void watch(int fd, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(poller, operation, fd, &event)) fail("epoll_ctl");
}

static void end(int fd) {
    keep(&connections[fd].part, NULL, 0);
    keep(&connections[fd].unsent, NULL, 0);
    connections[fd].ending = 0;
    close(fd);
}

/* The value of a header: 0 if it is none. */
static size_t length_of(const char *header) {
    size_t value = 0;
    for (int i = 0; i < HEADER; i++) {
        unsigned digit = (unsigned char)header[i] - '0';
        if (digit > 9) return 0;
        value = value * 10 + digit;
    }
    return value;
}

static void reverse(char *to, const char *from, size_t length) {
    for (size_t i = 0; i < length; i++) to[i] = from[length - 1 - i];
}

static void receive(int fd) {
    struct connection *connection = &connections[fd];
    size_t held = connection->part.length, at = 0, out = 0;
    ssize_t got = recv(fd, input + held, READ, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        end(fd);
        return;
    }
    if (held) memcpy(input, connection->part.bytes, held);
    size_t have = held + (size_t)got;
    while (have - at >= HEADER) {
        size_t length = length_of(input + at);
        if (!length) {
            connection->ending = 1;
            break;
        }
        if (have - at < HEADER + length) break;
        memcpy(output + out, input + at, HEADER);
        reverse(output + out + HEADER, input + at + HEADER, length);
        out += HEADER + length;
        at += HEADER + length;
    }
    if (have != at || held) keep(&connection->part, input + at, have - at);
    size_t sent = 0;
    if (out) {
        ssize_t taken = send(fd, output, out, 0);
        if (taken < 0 && errno != EAGAIN) {
            end(fd);
            return;
        }
        sent = taken < 0 ? 0 : (size_t)taken;
    }
    if (sent < out) {
        keep(&connection->unsent, output + sent, out - sent);
        watch(fd, EPOLL_CTL_MOD, EPOLLOUT);
    } else if (connection->ending) {
        end(fd);
    }
}

static void send_rest(int fd) {
    struct connection *connection = &connections[fd];
    ssize_t taken = send(fd, connection->unsent.bytes, connection->unsent.length, 0);
    if (taken < 0) {
        if (errno != EAGAIN) end(fd);
        return;
    }
    size_t left = connection->unsent.length - (size_t)taken;
    if (left) {
        memmove(connection->unsent.bytes, connection->unsent.bytes + taken, left);
        connection->unsent.length = left;
        return;
    }
    keep(&connection->unsent, NULL, 0);
    if (connection->ending) end(fd);
    else watch(fd, EPOLL_CTL_MOD, EPOLLIN);
}

int main(int argc, char **argv) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);
    connections = calloc(files.rlim_cur, sizeof *connections);
    if (!connections) fail("calloc");

    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(argc > 1 ? atoi(argv[1]) : 0),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int on = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 4096) ||
        getsockname(listener, (struct sockaddr *)&address, &size))
        fail("cannot listen");
    fprintf(stderr, "listening on 127.0.0.1:%d\n", ntohs(address.sin_port));

    poller = epoll_create1(0);
    watch(listener, EPOLL_CTL_ADD, EPOLLIN);
    static struct epoll_event events[EVENTS];
    for (;;) {
        int count = epoll_wait(poller, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                int peer;
                while ((peer = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                    watch(peer, EPOLL_CTL_ADD, EPOLLIN);
                }
            } else if (connections[fd].unsent.length) {
                send_rest(fd);
            } else {
                receive(fd);
            }
        }
    }
}
