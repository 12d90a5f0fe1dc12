/* The server behind the routers that benchmarks/http.py compares: one thread, epoll, loopback, no dependencies.
 *
 *   cc -O2 -o upstream upstream.c && ./upstream PORT...
 *
 * It answers /v1/chat/completions at once, whole, or as a stream of EVENTS server-sent events, each in a send() of its own; and what
 * routers ask a worker before they use it. An accepted socket keeps its own buffer; a request is answered when it is complete.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 32, SOCKETS = 4096, CAPACITY = 1 << 20 };

static const char CHUNK[] =
    "data: {\"id\":\"a\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,"
    "\"delta\":{\"content\":\"word \"},\"logprobs\":null,\"finish_reason\":null}]}\n\n";
static const char REPLY[] =
    "{\"id\":\"a\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"message\":"
    "{\"role\":\"assistant\",\"content\":\"word word word word\"},\"logprobs\":null,\"finish_reason\":\"length\"}],"
    "\"usage\":{\"prompt_tokens\":8,\"completion_tokens\":4,\"total_tokens\":12,\"prompt_tokens_details\":{\"cached_tokens\":0}}}";

/* A route's name is looked for in the path; the first that is there answers. */
static const struct { const char *name, *reply; } ROUTES[] = {
    {"server_info",
     "{\"model_path\":\"m\",\"served_model_name\":\"m\",\"model_id\":\"m\",\"tp_size\":1,\"dp_size\":1,\"page_size\":1,"
     "\"load_balance_method\":\"round_robin\",\"disaggregation_mode\":\"null\",\"version\":\"0.5.20\",\"context_length\":131072,"
     "\"max_total_num_tokens\":1000000,\"max_running_requests\":256,\"internal_states\":[{}]}"},
    {"model_info", "{\"model_path\":\"m\",\"tokenizer_path\":\"m\",\"is_generation\":true,\"served_model_name\":\"m\"}"},
    {"models", "{\"object\":\"list\",\"data\":[{\"id\":\"m\",\"object\":\"model\",\"created\":1,\"owned_by\":\"x\",\"max_model_len\":131072}]}"},
    {"version", "{\"version\":\"0.11.0\"}"},
    {"load", "[{\"dp_rank\":0,\"num_reqs\":0,\"num_waiting_reqs\":0,\"num_tokens\":0}]"},
    {"health", "{}"},
};

static struct { char *data; size_t used; } inbox[SOCKETS];
static char listens[SOCKETS];

static void say(int fd, const char *data, size_t size) {
    for (ssize_t sent; size > 0; data += sent, size -= sent) {
        sent = send(fd, data, size, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) return;
        if (sent < 0) sent = 0;
    }
}

static void say_json(int fd, const char *body) {
    char out[4096];
    say(fd, out, sprintf(out, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", strlen(body), body));
}

static void say_stream(int fd) {
    static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    static const char end[] = "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
    char chunk[1024];
    int size = sprintf(chunk, "%zx\r\n%s\r\n", strlen(CHUNK), CHUNK);
    say(fd, head, sizeof head - 1);
    for (int event = 0; event < EVENTS; event++) say(fd, chunk, size);
    say(fd, end, sizeof end - 1);
}

static void answer(int fd, const char *path, size_t path_size, const char *body, size_t body_size) {
    if (memmem(path, path_size, "/chat/", 6)) {
        if (memmem(body, body_size, "\"stream\":true", 13)) say_stream(fd);
        else say_json(fd, REPLY);
        return;
    }
    for (size_t i = 0; i < sizeof ROUTES / sizeof *ROUTES; i++) {
        if (memmem(path, path_size, ROUTES[i].name, strlen(ROUTES[i].name))) {
            say_json(fd, ROUTES[i].reply);
            return;
        }
    }
    say(fd, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", 45);
}

/* The size of a chunked body with its framing; 0 if it is not complete. */
static size_t chunked_size(const char *body, size_t size) {
    const char *at = body, *end = body + size;
    for (;;) {
        const char *line = memmem(at, end - at, "\r\n", 2);
        if (!line) return 0;
        size_t chunk = strtoul(at, 0, 16);
        at = line + 2 + chunk + 2;
        if (at > end) return 0;
        if (!chunk) return at - body;
    }
}

static void serve(int fd) {
    char *data = inbox[fd].data;
    while (inbox[fd].used) {
        data[inbox[fd].used] = 0;
        char *blank = memmem(data, inbox[fd].used, "\r\n\r\n", 4);
        if (!blank) return;
        size_t head = blank + 4 - data, rest = inbox[fd].used - head, body = 0;
        *blank = 0;
        char *length = strcasestr(data, "\ncontent-length:");
        int chunked = strcasestr(data, "\ntransfer-encoding: chunked") != 0;
        *blank = '\r';
        if (length) body = strtoul(length + 16, 0, 10);
        if (chunked && !(body = chunked_size(data + head, rest))) return;
        if (rest < body) return;
        char *path = memchr(data, ' ', head), *path_end = path ? memchr(path + 1, ' ', head - (path - data) - 1) : 0;
        if (!path_end) return;
        answer(fd, path, path_end - path, data + head, body);
        inbox[fd].used -= head + body;
        memmove(data, data + head + body, inbox[fd].used);
    }
}

static void watch(int epoll, int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

static void open_port(int epoll, int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (void *)&address, sizeof address) || listen(fd, 512)) {
        perror("port");
        exit(1);
    }
    listens[fd] = 1;
    watch(epoll, fd);
}

static void accept_all(int epoll, int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, 0, 0, SOCK_NONBLOCK)) >= 0) {
        if (fd >= SOCKETS) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (!inbox[fd].data) inbox[fd].data = malloc(CAPACITY + 1);
        inbox[fd].used = 0;
        watch(epoll, fd);
    }
}

int main(int count, char **ports) {
    int epoll = epoll_create1(0);
    for (int i = 1; i < count; i++) open_port(epoll, atoi(ports[i]));
    struct epoll_event events[256];
    for (;;) {
        int ready = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (listens[fd]) {
                accept_all(epoll, fd);
                continue;
            }
            ssize_t got = recv(fd, inbox[fd].data + inbox[fd].used, CAPACITY - inbox[fd].used, 0);
            if (got < 0 && errno == EAGAIN) continue;
            if (got <= 0) {
                close(fd);
                continue;
            }
            inbox[fd].used += got;
            serve(fd);
        }
    }
}
