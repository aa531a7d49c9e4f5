/* SPDX-License-Identifier: Apache-2.0
 *
 * Streams: what a flow's senders have of it, whichever connection brings it; what this life was
 * told of earlier ones, and what it tells the driver.
 *
 * Invariant: a stream's bytes follow from where it begins in the common ones, which go round.
 */
#include "sim.h"

#include <isa-l/crc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct stream streams[STREAMS_MAX];
uint32_t streams_count;
static uint8_t common[STREAM_PERIOD];

void streams_open(void) {
    uint64_t state = 1;
    for (uint32_t i = 0; i < STREAM_PERIOD; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        common[i] = (uint8_t)(state >> 56);
    }
}

uint8_t common_byte(uint64_t at) {
    return common[at % STREAM_PERIOD];
}

void stream_bytes(const struct stream *s, uint64_t at, uint8_t *out, uint64_t bytes) {
    uint64_t from = (s->start + at) % STREAM_PERIOD;
    while (bytes > 0) {
        uint64_t part = STREAM_PERIOD - from < bytes ? STREAM_PERIOD - from : bytes;
        memcpy(out, common + from, part);
        out += part;
        bytes -= part;
        from = 0;
    }
}

uint32_t stream_crc(const struct stream *s, uint64_t bytes) {
    uint8_t part[4096];
    uint32_t crc = ~0u;
    for (uint64_t at = 0; at < bytes; at += sizeof part) {
        uint64_t size = bytes - at < sizeof part ? bytes - at : sizeof part;
        stream_bytes(s, at, part, size);
        crc = crc32_iscsi(part, (int)size, crc);
    }
    return ~crc;
}

void stream_carry(const char *line) {
    unsigned number, start, crc;
    unsigned long long payload, bytes;
    char id[40];
    int is_known, is_sealed;
    struct stream *s = &streams[streams_count];
    if (sscanf(line, "%u %u %llu %32s %llu %u %d %d", &number, &start, &payload, id, &bytes, &crc,
               &is_known, &is_sealed) != 8 ||
        streams_count == STREAMS_MAX || number != streams_count)
        sim_fail("no stream can be carried on by: %s", line);
    *s = (struct stream){.number = streams_count++,
                         .start = start,
                         .is_ingest = true,
                         .is_used = true,
                         .payload_bytes = payload > bytes ? payload : bytes,
                         .sent_bytes = bytes,
                         .safe_bytes = bytes,
                         .base_bytes = bytes,
                         .base_crc = crc,
                         .base_crc_known = is_known != 0,
                         .is_resumable = true,
                         .is_begun = true,
                         .is_sealed = is_sealed != 0,
                         .owner = -1};
    for (int i = 0; i < 16; i++) {
        char digits[3] = {id[2 * i], id[2 * i + 1], 0};
        s->id[i] = (uint8_t)strtoul(digits, NULL, 16);
    }
}

/* What the driver compares a recovered store with. */
void streams_report(FILE *out) {
    for (uint32_t i = 0; i < streams_count; i++) {
        const struct stream *s = &streams[i];
        fprintf(out, "stream %u %d %llu ", s->number, s->is_ingest,
                (unsigned long long)s->payload_bytes);
        for (int k = 0; k < 16; k++)
            fprintf(out, "%02x", s->is_used ? s->id[k] : 0);
        bool is_fed = s->is_ingest ? s->owner >= 0 : !s->is_sealed && !s->was_ended;
        fprintf(out, " %u %u %llu %llu %d %llu %d %d %d\n", s->port, s->start,
                (unsigned long long)s->sent_bytes, (unsigned long long)s->told_bytes, s->is_sealed,
                (unsigned long long)s->final_bytes, s->was_ended, s->failed, is_fed);
    }
}
