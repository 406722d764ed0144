// Canned HTTP responder on one queue of a TAP: what any server of one thread behind that TAP could reach at best.
//
// usage: canned QUEUE_FD MAC
//
// QUEUE_FD is inherited: a non-blocking queue with a 10-byte offload header, opened and filtered as xokd does it for
// an environment, so that the responder pays for the same programs as Cheetah. Answers ARP for any address and any
// TCP port. `GET /N` gets N bytes of body; the connection closes after it when the request says "close", otherwise it
// is kept. There is only the state that streaming needs, by client port: no timers, no retransmission, no file.
// A request must arrive in one segment and is not pipelined; load generators on the same machine do just that.
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>
#include <linux/virtio_net.h>

enum { VNET = 10, ETH = 14, IP = 20, TCP = 20, MSS = 1460, CHUNK = 44 * MSS, MAX_BODY = 1 << 20, MAX_HEAD = 256 };
enum { FIN = 1, SYN = 2, RST = 4, PSH = 8, ACK = 16 };

static uint8_t frame[70000], out[VNET + ETH + IP + TCP + 8], mac[6];
static uint8_t *response[2];  // [closes]: head and body in one piece, made for the size asked last
static int32_t made_for[2] = {-1, -1};
static uint32_t made_length[2];
static int queue;

static struct connection {
    uint32_t start, next, end;   // stream offsets: of the answer under way, of the next byte to send, of its end
    uint8_t shift, closes, fin_sent;
    int32_t size;
} connections[65536];

static uint16_t get16(const uint8_t *p) { return p[0] << 8 | p[1]; }
static uint32_t get32(const uint8_t *p) { return (uint32_t)get16(p) << 16 | get16(p + 2); }
static void put16(uint8_t *p, uint16_t v) { p[0] = v >> 8; p[1] = v; }
static void put32(uint8_t *p, uint32_t v) { put16(p, v >> 16); put16(p + 2, v); }

static uint32_t sum(const uint8_t *p, int n, uint32_t s) {
    for (; n > 1; p += 2, n -= 2) s += get16(p);
    return n ? s + (p[0] << 8) : s;
}
static uint16_t fold(uint32_t s) {
    while (s >> 16) s = (s & 0xffff) + (s >> 16);
    return s;
}

// Send one segment, up to 64 KB, in answer to the frame `e`; the host's kernel cuts it and sums it.
static void emit(const uint8_t *e, uint32_t seq, uint32_t ack, uint8_t flags, const uint8_t *data, uint32_t length) {
    const uint8_t *ip = e + ETH, *tcp = ip + IP;
    int options = flags & SYN ? 8 : 0;
    memset(out, 0, sizeof out);
    struct virtio_net_hdr *offload = (void *)out;
    uint8_t *o = out + VNET, *oip = o + ETH, *otcp = oip + IP;
    memcpy(o, e + 6, 6); memcpy(o + 6, mac, 6); put16(o + 12, 0x0800);
    oip[0] = 0x45; put16(oip + 2, IP + TCP + options + length); oip[6] = 0x40; oip[8] = 64; oip[9] = 6;
    memcpy(oip + 12, ip + 16, 4); memcpy(oip + 16, ip + 12, 4);
    put16(oip + 10, ~fold(sum(oip, IP, 0)));
    memcpy(otcp, tcp + 2, 2); memcpy(otcp + 2, tcp, 2);
    put32(otcp + 4, seq); put32(otcp + 8, ack);
    otcp[12] = (TCP + options) / 4 << 4; otcp[13] = flags; put16(otcp + 14, 65535);
    if (options) memcpy(otcp + TCP, "\2\4\5\264\1\3\3\7", 8);  // MSS 1460, window scale 7
    put16(otcp + 16, fold(sum(oip + 12, 8, 6 + TCP + options + length)));
    offload->flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
    offload->csum_start = ETH + IP; offload->csum_offset = 16; offload->hdr_len = ETH + IP + TCP + options;
    if (length > MSS) { offload->gso_type = VIRTIO_NET_HDR_GSO_TCPV4; offload->gso_size = MSS; }
    struct iovec pieces[2] = {{out, VNET + ETH + IP + TCP + options}, {(void *)data, length}};
    while (writev(queue, pieces, length ? 2 : 1) < 0) {
        if (errno != EAGAIN && errno != EINTR) { perror("canned: write"); exit(1); }
        struct pollfd p = {queue, POLLOUT, 0};
        poll(&p, 1, 10);
    }
}

static void prepare(int closes, int32_t size) {
    if (made_for[closes] == size) return;
    const char *connection = closes ? "close" : "keep-alive";
    char *head = (char *)response[closes];
    int n = snprintf(head, MAX_HEAD, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: %s\r\n\r\n", size, connection);
    memset(head + n, 'x', size);
    made_for[closes] = size; made_length[closes] = n + size;
}

// Take a request and say what is to be streamed for it.
static void request(struct connection *c, uint8_t *text, int length) {
    text[length] = 0;  // the frame buffer is longer than any frame
    c->closes = strstr((char *)text, "close") != NULL;
    c->size = length > 5 ? atoi((char *)text + 5) : 0;
    if (c->size < 0 || c->size > MAX_BODY) c->size = 0;
    prepare(c->closes, c->size);
    c->start = c->next; c->end = c->next + made_length[c->closes];
}

// Read the peer's window scale from the options of its SYN.
static uint8_t window_shift(const uint8_t *p, const uint8_t *end) {
    while (p < end && *p) {
        if (*p == 1) { p++; continue; }
        if (p + 1 >= end || p[1] < 2 || p + p[1] > end) break;
        if (*p == 3) return p[2] > 14 ? 14 : p[2];
        p += p[1];
    }
    return 0;
}

static void arp(const uint8_t *e) {
    uint8_t answer[VNET + 42] = {0}, *o = answer + VNET;
    memcpy(o, e, 42); memcpy(o, e + 6, 6); memcpy(o + 6, mac, 6); put16(o + 20, 2);
    memcpy(o + 22, mac, 6); memcpy(o + 28, e + 38, 4); memcpy(o + 32, e + 22, 10);
    if (write(queue, answer, sizeof answer) < 0) perror("canned: arp");
}

static void segment(uint8_t *e) {
    uint8_t *ip = e + ETH, *tcp = ip + IP;
    int header = (tcp[12] >> 4) * 4, length = get16(ip + 2) - IP - header;
    uint32_t seq = get32(tcp + 4), acked = get32(tcp + 8);
    uint8_t flags = tcp[13];
    struct connection *c = &connections[get16(tcp)];
    if (flags & RST || length < 0) return;
    if (flags & SYN) {
        *c = (struct connection){.next = 1, .end = 1, .shift = window_shift(tcp + TCP, tcp + header)};
        emit(e, 0, seq + 1, SYN | ACK, 0, 0);
        return;
    }
    if ((int32_t)(c->next + c->fin_sent - acked) < 0) return;  // of the connection that had this port before
    uint32_t expect = seq + length + (flags & FIN), window = (uint32_t)get16(tcp + 14) << c->shift;
    if (length && c->next == c->end && !c->fin_sent) request(c, tcp + header, length);
    if (c->next == c->end) {
        if (!(flags & FIN)) return;
        emit(e, c->next + c->fin_sent, expect, c->fin_sent ? ACK : ACK | FIN, 0, 0);
        c->fin_sent = 1;
        return;
    }
    prepare(c->closes, c->size);
    while (c->next != c->end) {
        uint32_t offset = c->next - c->start, n = c->end - c->next;
        if (n > CHUNK) n = CHUNK;
        if (c->next + n - acked > window) {
            int room = window - (c->next - acked);
            if (room < MSS) return;
            n = room / MSS * MSS;
        }
        uint8_t last = c->next + n == c->end;
        uint8_t fin = last && c->closes;
        emit(e, c->next, expect, ACK | (last ? PSH : 0) | (fin ? FIN : 0), response[c->closes] + offset, n);
        c->next += n;
        c->fin_sent = fin;
    }
}

int main(int c, char **v) {
    if (c != 3 || sscanf(v[2], "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", mac, mac + 1, mac + 2, mac + 3, mac + 4, mac + 5) != 6)
        return fprintf(stderr, "usage: canned QUEUE_FD MAC\n"), 2;
    queue = atoi(v[1]);
    for (int i = 0; i < 2; i++) response[i] = malloc(MAX_HEAD + MAX_BODY);
    for (;;) {
        int n = read(queue, frame, sizeof frame - 1);
        if (n < 0) {
            if (errno != EAGAIN && errno != EINTR) { perror("canned: read"); exit(1); }
            struct pollfd p = {queue, POLLIN, 0};
            poll(&p, 1, -1);
            continue;
        }
        uint8_t *e = frame + VNET;
        if (n >= VNET + 42 && get16(e + 12) == 0x0806) arp(e);
        else if (n >= VNET + ETH + IP + TCP && get16(e + 12) == 0x0800 && e[ETH] == 0x45 && e[ETH + 9] == 6) segment(e);
    }
}
