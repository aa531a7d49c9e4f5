/* SPDX-License-Identifier: Apache-2.0
 *
 * Scripted senders, of both protocols, and some that keep to none; what they are told is compared
 * with what they sent.
 *
 * Invariants: byte i of a stream follows from its number and the life's generation, whichever
 * connection brings it. A sender that is told that its flow is sealed had sent all of it, and the
 * receipt has its length and checksum. What is told to be durable was sent.
 */
#include "sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONNECTIONS_MAX 96u
#define VAIN_COUNT 8u
#define RARER_MAX 8u
#define HELLO_MAGIC "SIMHELLO"
#define TRAILER_MAGIC "SIMTRAIL"

struct hello {
    char magic[8];
    uint32_t stream, sender;
    uint64_t bytes;
};

struct sender {
    struct socket_ *socket;
    struct stream *stream;
    bool is_over, is_sent, waits, is_accepted, is_admitted, states_length, has_trailer;
    bool stays_silent, ends_short, reads_slowly, was_told_last;
    uint64_t wire_bytes, head_bytes, base_bytes, payload_bytes, tail_bytes;
    uint64_t reset_at, silent_at; /* bytes of the wire; NEVER */
    uint64_t next_ns;
    uint32_t vain_count; /* so often in a row it could do nothing: it looks more rarely */
    uint32_t parsed;     /* of the socket's inbox */
};

static struct sender senders[CONNECTIONS_MAX];
static uint32_t senders_count;
static uint64_t connect_ns;

/* --- Bytes ------------------------------------------------------------------------------ */

/* Some bytes of a hello, or of a trailer: what is in front, and bytes that must come as they are.
 */
static void wire_block(const struct sender *s, const char *magic, uint64_t value, uint64_t at,
                       uint8_t *out, uint32_t bytes) {
    struct hello h = {
        .stream = s->stream->number, .sender = (uint32_t)(s - senders), .bytes = value};
    memcpy(h.magic, magic, sizeof h.magic);
    for (uint64_t i = at; i < at + bytes; i++)
        out[i - at] = i < sizeof h ? ((const uint8_t *)&h)[i]
                                   : common_byte(s->stream->start + 7 * i + (uint8_t)magic[3]);
}

static void make_block(const struct sender *s, const char *magic, uint64_t value, uint8_t *out) {
    wire_block(s, magic, value, 0, out, BLOCK);
}

void sender_wire(struct socket_ *socket, uint64_t at, uint8_t *out, uint32_t bytes) {
    const struct sender *s = &senders[socket->sender];
    uint64_t payload_end = s->head_bytes + s->payload_bytes;
    while (bytes > 0) {
        uint64_t end = at < s->head_bytes ? s->head_bytes
                       : at < payload_end ? payload_end
                                          : s->wire_bytes;
        uint32_t part = end - at < bytes ? (uint32_t)(end - at) : bytes;
        if (part == 0)
            sim_fail("port %u: byte %llu is read of %llu + %llu + %llu, %llu came", socket->port,
                     (unsigned long long)at, (unsigned long long)s->head_bytes,
                     (unsigned long long)s->payload_bytes, (unsigned long long)s->tail_bytes,
                     (unsigned long long)socket->arrived);
        if (at < s->head_bytes)
            wire_block(s, HELLO_MAGIC, s->stream->payload_bytes, at, out, part);
        else if (at < payload_end)
            stream_bytes(s->stream, s->base_bytes + at - s->head_bytes, out, part);
        else
            wire_block(s, TRAILER_MAGIC, s->base_bytes + s->payload_bytes, at - payload_end, out,
                       part);
        at += part;
        out += part;
        bytes -= part;
    }
}

/* --- What Python's side asks of them -------------------------------------------------------- */

static struct sender *sender_at(uint32_t sender) {
    if (sender >= senders_count)
        sim_fail("no sender %u", sender);
    return &senders[sender];
}

struct stream *stream_of_hello(const uint8_t *block, uint32_t *sender) {
    struct hello h;
    uint8_t expected[BLOCK];
    memcpy(&h, block, sizeof h);
    if (memcmp(h.magic, HELLO_MAGIC, sizeof h.magic) != 0)
        sim_fail("a hello is none");
    *sender = h.sender;
    make_block(sender_at(h.sender), HELLO_MAGIC, senders[h.sender].stream->payload_bytes, expected);
    if (memcmp(expected, block, BLOCK) != 0)
        sim_fail("the hello of sender %u is another", h.sender);
    return senders[h.sender].stream;
}

void sender_check_trailer(uint32_t sender, const uint8_t *block, uint64_t bytes) {
    const struct sender *s = sender_at(sender);
    uint8_t expected[BLOCK];
    make_block(s, TRAILER_MAGIC, s->base_bytes + s->payload_bytes, expected);
    if (bytes != s->base_bytes + s->payload_bytes || memcmp(expected, block, BLOCK) != 0)
        sim_fail("the trailer of sender %u, behind %llu bytes, is another", sender,
                 (unsigned long long)bytes);
}

bool sender_states_length(uint32_t sender) {
    return sender_at(sender)->states_length;
}

bool sender_has_trailer(uint32_t sender) {
    return sender_at(sender)->has_trailer;
}

bool sender_waits(uint32_t sender) {
    return sender_at(sender)->waits;
}

/* Some stop in the middle, and some of those for good: they neither go on nor hang up. */
static void be_silent(struct sender *s) {
    if (sim.calm || !sim_one_of(16))
        return;
    s->silent_at = sim_random() % (s->wire_bytes + 1);
    s->stays_silent = sim_below(2) != 0;
}

static void plan_payload(struct sender *s) {
    uint64_t left = s->stream->payload_bytes - s->base_bytes;
    s->payload_bytes = left;
    if (s->ends_short && left > 0)
        s->payload_bytes = sim_random() % left;
    else if (s->states_length && !s->has_trailer && !sim.calm && sim_one_of(12))
        s->payload_bytes += 1 + sim_below(6000);
    s->tail_bytes = s->has_trailer && !s->ends_short ? BLOCK : 0;
    s->wire_bytes = s->head_bytes + s->payload_bytes + s->tail_bytes;
    if (!sim.calm && sim_one_of(sim.shape.reset_of))
        s->reset_at = sim_random() % (s->wire_bytes + 1);
    be_silent(s);
}

void sender_admitted(uint32_t sender, uint64_t base) {
    struct sender *s = sender_at(sender);
    if (!s->waits && base != 0)
        sim_fail("sender %u was let in at another offset than it had begun at", sender);
    s->is_admitted = true;
    s->base_bytes = base;
    if (s->waits)
        plan_payload(s);
}

/* Whoever takes the connection counts it anew. */
void sender_moves(uint32_t sender) {
    sender_at(sender)->socket->is_served = false;
}

/* --- What they are told -------------------------------------------------------------------- */

static uint64_t number_of(const char *line, const char *key) {
    char quoted[40];
    snprintf(quoted, sizeof quoted, "\"%s\": ", key);
    const char *at = strstr(line, quoted);
    return at == NULL ? NEVER : strtoull(at + strlen(quoted), NULL, 10);
}

static void check_durable(struct sender *s, uint64_t bytes) {
    struct stream *stream = s->stream;
    if (bytes > stream->sent_bytes)
        sim_fail("stream %u: %llu bytes are told, and %llu were sent", stream->number,
                 (unsigned long long)bytes, (unsigned long long)stream->sent_bytes);
    if (bytes > stream->safe_bytes && !stream->is_safe_unknown)
        sim_fail("stream %u: %llu bytes are told, and %llu are safe", stream->number,
                 (unsigned long long)bytes, (unsigned long long)stream->safe_bytes);
    if (bytes > stream->told_bytes)
        stream->told_bytes = bytes;
}

static void check_sealed(struct sender *s, const char *line, uint64_t bytes) {
    struct stream *stream = s->stream;
    const char *checksum = strstr(line, "\"checksum\": \"crc32c:");
    uint64_t all = s->base_bytes + s->payload_bytes;
    check_durable(s, bytes);
    if (!s->is_sent || s->reset_at < s->wire_bytes || bytes != all)
        sim_fail("stream %u is sealed with %llu bytes of %llu", stream->number,
                 (unsigned long long)bytes, (unsigned long long)all);
    if (s->states_length && all != stream->payload_bytes)
        sim_fail("stream %u is sealed and has another length than stated", stream->number);
    if (sim.shape.checksum && checksum == NULL && !stream->is_ingest)
        sim_fail("the receipt of stream %u lacks a checksum", stream->number);
    if (checksum != NULL) {
        uint32_t crc = (uint32_t)strtoul(strstr(checksum, "crc32c:") + 7, NULL, 16);
        if (crc != stream_crc(stream, bytes))
            sim_fail("the receipt of stream %u has a wrong checksum", stream->number);
    }
    stream->is_sealed = true;
    stream->final_bytes = bytes;
}

/* Who is told that what it sent is not as announced has sent something else. */
static void check_judged(const struct sender *s, const char *line) {
    uint64_t left = s->stream->payload_bytes - s->base_bytes;
    bool is_wrong = (strstr(line, "\"too_long\"") != NULL && s->payload_bytes <= left) ||
                    (strstr(line, "\"too_short\"") != NULL && s->payload_bytes >= left) ||
                    (strstr(line, "\"trailer\"") != NULL && s->tail_bytes != 0);
    if (is_wrong && s->reset_at == NEVER)
        sim_fail("stream %u was sent as announced, and its sender is told: %s", s->stream->number,
                 line);
}

static void hear(struct sender *s, const char *line) {
    struct stream *stream = s->stream;
    sim_log("port %u hears %.100s", s->socket->port, line);
    if (s->was_told_last)
        sim_fail("port %u is told more behind its last line", s->socket->port);
    bool is_sealed = strstr(line, "\"sealed\"") != NULL && strstr(line, "\"error\"") == NULL;
    if (strstr(line, "\"type\": \"accepted\"") != NULL) {
        s->is_accepted = true;
        if (!s->is_admitted || number_of(line, "offset") != s->base_bytes)
            sim_fail("sender %u is let in where it should not be", (uint32_t)(s - senders));
    } else if (strstr(line, "\"type\": \"durable\"") != NULL) {
        check_durable(s, number_of(line, "offset"));
    } else if (strstr(line, "\"type\": \"hello\"") == NULL) {
        s->was_told_last = true;
        if (s->is_admitted)
            check_judged(s, line);
        uint64_t bytes = number_of(line, stream->is_ingest && !is_sealed ? "durable" : "bytes");
        if (is_sealed)
            check_sealed(s, line, bytes);
        else if (bytes != NEVER && s->is_admitted)
            check_durable(s, bytes);
        stream->was_ended = stream->was_ended || !is_sealed;
        stream->failed = stream->failed || strstr(line, "store_failed") != NULL;
    }
}

/* Also of those that do not read: what is told counts from the moment it is sent. */
static void hear_all(struct sender *s) {
    struct socket_ *k = s->socket;
    for (;;) {
        char *from = k->inbox + s->parsed;
        char *end = memchr(from, '\n', k->inbox_bytes - s->parsed);
        if (end == NULL)
            break;
        *end = 0;
        hear(s, from);
        s->parsed = (uint32_t)(end + 1 - k->inbox);
    }
    if (s->reads_slowly && !sim.calm && sim_below(50) != 0)
        return;
    memmove(k->inbox, k->inbox + s->parsed, k->inbox_bytes - s->parsed);
    k->inbox_bytes -= s->parsed;
    s->parsed = 0;
}

void senders_listen(void) {
    for (uint32_t i = 0; i < senders_count; i++)
        if (!senders[i].is_over)
            hear_all(&senders[i]);
}

/* --- What they do -------------------------------------------------------------------------- */

static struct stream *new_stream(bool is_ingest) {
    if (streams_count == STREAMS_MAX)
        return NULL;
    struct stream *s = &streams[streams_count];
    *s = (struct stream){.number = streams_count++, .is_ingest = is_ingest, .owner = -1};
    /* The same seed in another store or generation: the same places, other bytes. */
    s->start =
        (uint32_t)((sim_random() + sim.generation * 7919 + sim.uuid[0] * 257u) % STREAM_PERIOD);
    uint32_t most = sim_below(3) ? sim.shape.payload_max / 8 : sim.shape.payload_max;
    s->payload_bytes = sim_one_of(8) ? sim_below(3) : sim_below(most + 1);
    if (sim_one_of(6))
        s->payload_bytes = s->payload_bytes / BLOCK * BLOCK;
    if (sim.shape.is_plain)
        s->payload_bytes = sim.shape.payload_max;
    s->is_resumable = s->base_crc_known = true;
    if (is_ingest) {
        for (int i = 0; i < 16; i++)
            s->id[i] = (uint8_t)sim_random();
        s->is_used = true;
    }
    return s;
}

static struct stream *stream_to_feed(bool is_ingest) {
    if (is_ingest && sim_below(2))
        for (uint32_t tries = 4; tries > 0 && streams_count > 0; tries--) {
            struct stream *s = &streams[sim_below(streams_count)];
            if (s->is_ingest && !s->is_sealed)
                return s;
        }
    return new_stream(is_ingest);
}

static void connect_one(void) {
    bool is_ingest = !sim.shape.is_plain && sim_below(2) != 0;
    uint32_t most = sim.shape.is_plain ? sim.shape.senders_max : CONNECTIONS_MAX;
    if (senders_count == most)
        return;
    struct stream *stream = stream_to_feed(is_ingest);
    if (stream == NULL)
        return;
    struct sender *s = &senders[senders_count];
    *s = (struct sender){.stream = stream, .reset_at = NEVER, .silent_at = NEVER};
    s->socket = socket_connect(is_ingest ? 1 : 0);
    s->socket->sender = senders_count++;
    s->reads_slowly = sim_one_of(6);
    if (s->reads_slowly)
        s->socket->inbox_room = 200 + sim_below(400);
    s->head_bytes = is_ingest ? BLOCK : 0;
    s->states_length = is_ingest && sim_below(2);
    s->has_trailer = is_ingest && sim_below(2);
    s->ends_short = s->states_length && sim_one_of(8);
    s->waits = is_ingest && (stream->base_bytes > 0 || stream->owner >= 0 ||
                             stream->sent_bytes > 0 || stream->is_begun || sim_below(2));
    stream->is_begun = true;
    if (is_ingest)
        s->wire_bytes = BLOCK;
    else
        stream->port = s->socket->port;
    if (s->waits)
        be_silent(s);
    else
        plan_payload(s);
    s->is_admitted = !is_ingest;
    sim_log("sender %u: port %u, stream %u of %llu%s%s%s", s->socket->sender, s->socket->port,
            stream->number, (unsigned long long)stream->payload_bytes,
            is_ingest ? " ingest" : " raw", s->states_length ? " stated" : "",
            s->has_trailer ? " trailer" : "");
    bool is_in = border_allows(is_ingest ? 1 : 0, s->socket->host); /* as the other worker saw */
    if (is_in && sim_one_of(12) && !sim.calm && !sim.draining)
        border_adopt(socket_hand_over(s->socket), is_ingest ? 1 : 0, 0);
}

static void send_some(struct sender *s) {
    struct socket_ *k = s->socket;
    uint64_t most = s->wire_bytes;
    most = most < s->reset_at ? most : s->reset_at;
    bool is_silent = s->silent_at < most && (s->stays_silent || !sim.calm);
    most = is_silent ? s->silent_at : most;
    most = most > k->arrived ? most : k->arrived; /* a hello was sent before it was planned */
    uint64_t bytes = 1 + sim_below(sim_below(3) ? 5000 : 60000);
    bytes = bytes < most - k->arrived ? bytes : most - k->arrived;
    if (bytes > 0)
        socket_deliver(k, bytes);
    if (k->arrived > s->head_bytes) {
        uint64_t payload = k->arrived - s->head_bytes;
        payload = payload < s->payload_bytes ? payload : s->payload_bytes;
        if (s->stream->sent_bytes < s->base_bytes + payload)
            s->stream->sent_bytes = s->base_bytes + payload;
    }
    bool may_end = !s->waits || s->is_accepted;
    if (k->arrived >= s->reset_at && may_end) {
        socket_end(k, true);
        s->is_sent = true;
    } else if (k->arrived == s->wire_bytes && may_end) {
        socket_end(k, false);
        s->is_sent = true;
    }
}

static void act(struct sender *s) {
    struct socket_ *k = s->socket;
    bool is_gone = k->is_accepted && !k->is_open;
    if (k->is_pending && sim.draining) {
        k->is_pending = false; /* nobody accepts it any more */
        is_gone = true;
    }
    if (is_gone) {
        hear_all(s);
        s->is_over = true;
        k->has_sender = false;
        socket_settle(k);
        return;
    }
    uint64_t arrived = k->arrived;
    if (!s->is_sent)
        send_some(s);
    s->vain_count = k->arrived > arrived ? 0 : s->vain_count + 1;
    if (!s->is_sent && sim.calm && s->was_told_last) {
        socket_end(k, false);
        s->is_sent = true;
    }
    uint32_t rarer =
        s->vain_count / VAIN_COUNT < RARER_MAX ? s->vain_count / VAIN_COUNT : RARER_MAX;
    uint32_t most = sim_one_of(10) ? 20000000 : 300000u << rarer;
    s->next_ns = sim.now_ns + 1 + sim_below(most);
}

void senders_step(void) {
    uint32_t active = 0;
    for (uint32_t i = 0; i < senders_count; i++) {
        if (!senders[i].is_over && senders[i].next_ns <= sim.now_ns)
            act(&senders[i]);
        if (senders[i].is_over)
            continue;
        active++;
        sim_wake_at(senders[i].next_ns > sim.now_ns ? senders[i].next_ns : sim.now_ns + 1);
    }
    if (sim.calm || sim.draining || active >= sim.shape.senders_max || connect_ns > sim.now_ns)
        return;
    connect_one();
    uint32_t most = sim.shape.is_crowd ? 20000 : sim_one_of(10) ? 50000000 : 500000;
    connect_ns = sim.now_ns + sim_below(most);
}

/* Nothing comes of them any more; there may be some that say nothing, and stay. */
bool senders_are_over(void) {
    for (uint32_t i = 0; i < senders_count; i++) {
        const struct sender *s = &senders[i];
        bool is_silent = s->stays_silent && s->socket->arrived >= s->silent_at;
        if (!s->is_over && !is_silent)
            return false;
    }
    return true;
}

/* Nobody is silent any more, but for those who stay so. */
void senders_calm(void) {
    for (uint32_t i = 0; i < senders_count; i++)
        senders[i].next_ns = 0;
}
