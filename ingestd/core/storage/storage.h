/* SPDX-License-Identifier: Apache-2.0
 *
 * Storage: takes streams' bytes, writes them to the store in batches, and reports when they
 * are durable. The one header of this room for others.
 *
 * bytes -> the open batch -> its place in a segment -> write -> flush (and mark) -> commit.
 * It calls nothing above it: the loop pulls what has happened, by storage_next_news(), after
 * completions and once a turn. Owned by the worker's thread. Invariants:
 *  - A hold that was handed over is released once, as news, when nothing reads its memory.
 *  - A stream is reported durable only up to what a crash cannot take away.
 *  - `state` only gets worse, except that a segment that is granted ends a full store.
 *  - What a full or failed store could not take is dropped with its batch, and streams are
 *    put back to what lies before it: news name those whose CLOSE record was dropped too.
 */
#ifndef INGESTD_STORAGE_STORAGE_H
#define INGESTD_STORAGE_STORAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/reactor.h"
#include "memory/area.h"
#include "storage/batch.h"
#include "storage/device.h"
#include "storage/stream.h"
#include "storage/writer.h"

struct storage_settings {
    int store_fd;
    uint8_t store_uuid[16];
    uint64_t store_bytes; /* what a file must have to be the store; 0: not looked at */
    uint64_t segments_offset;
    uint64_t segment_bytes;
    uint32_t block_bytes;
    uint32_t worker_index;
    uint32_t mem_align; /* of what is written from where it lies */
    uint32_t write_align;
    uint32_t virt_mask;
    uint32_t iovecs_max;
    bool any_address;           /* pieces begin and end anywhere; else they are padded in place */
    uint64_t payload_bytes_max; /* of a batch, beside what the segments make necessary */
    uint32_t writes_in_flight_max;
    uint64_t flush_interval_ns;
    uint64_t commit_interval_ns;
    bool checksum;
    uint32_t part_record_bytes; /* for tests: so soon a part of a footer is written; 0: when full */
};

enum storage_state {
    STORAGE_READY = 0,
    STORAGE_FULL,              /* no segment can be had */
    STORAGE_EXHAUSTED,         /* ... and what there was is used up, but for CLOSE records */
    STORAGE_RESERVE_EXHAUSTED, /* ... and so is the reserve for those */
    STORAGE_FAILED,            /* nothing is acknowledged any more */
};

/* What failed: of the device, or that the store itself is not there any more. */
enum storage_failure { FAILED_WRITE = 0, FAILED_FLUSH = 1, FAILED_LOST = 2 };

enum storage_news_kind {
    NEWS_DURABLE,  /* stream: a batch that has some of it is committed */
    NEWS_CLOSED,   /* stream: the same, and its CLOSE record is committed */
    NEWS_UNDONE,   /* stream: its CLOSE record was dropped */
    NEWS_RELEASED, /* holds: they are released to their lender */
    NEWS_FULL,     /* a full store could not take what it was given */
    NEWS_FAILED,   /* the store has failed */
};

struct storage_news {
    enum storage_news_kind kind;
    struct storage_stream *stream;
    const uint64_t *holds;
    uint32_t hold_count;
};

struct storage {
    struct storage_settings settings;
    struct reactor *reactor;
    struct area *area;
    enum storage_state state;
    int error;                         /* errno that made the store fail, or 0 */
    uint64_t retry_deadline_ns;        /* no write is tried again from then on */
    bool full_pending, failed_pending; /* news that are not taken yet */
    uint32_t done_head, done_tail;     /* batches written or dropped, with holds to release */
    uint32_t done_touch;               /* of the first of them: reported up to here */
    bool place_waits; /* the open batch found no place, and nothing has changed since */
    struct batch_pool batches;
    struct device device;
    struct writer writer;
};

/* Works out the sizes; takes nothing. False: the device's profile cannot be served. */
bool storage_init(struct storage *s, const struct storage_settings *settings);
/* Bytes of the area's own part that it will take. */
uint64_t storage_own_bytes(const struct storage *s);
/* Takes all memory; the ring is open and knows area and store. 0 or -errno with the fault set. */
int storage_open(struct storage *s, struct reactor *r, struct area *a);
void storage_close(struct storage *s);
/* The lender of holds cannot have more than so many in one batch, nor so many writes. */
void storage_bound(struct storage *s, uint32_t holds_max, uint32_t writes_in_flight_max);

/* Takes the piece, which is the stream's next, as far as there is room now. Returns the
 * bytes taken; each taking makes one hold. */
uint32_t storage_append(struct storage *s, struct storage_stream *t,
                        const struct batch_piece *piece);
/* The same of bytes that lie elsewhere and are copied: all or none, at most a page. */
bool storage_append_copy(struct storage *s, struct storage_stream *t, uint8_t *data,
                         uint32_t bytes);
/* The stream's CLOSE record: state, reason, flags and the sender's CRC are the caller's.
 * False: no room now. */
bool storage_append_close(struct storage *s, struct storage_stream *t, const struct frame_close *c);

/* Memory is short: the open batch is written at the next turn, whatever it has. */
void storage_request_flush(struct storage *s);

void storage_grant(struct storage *s, uint32_t segment_index, uint64_t sequence);
/* No further segment will be granted, for now. */
void storage_note_full(struct storage *s);
/* The store has failed, or was found to have failed, by whatever part. */
void storage_fail(struct storage *s, int code, enum storage_failure what, uint64_t offset);
/* Whether the last segment is to be closed with the last batch. */
void storage_finish(struct storage *s, bool wanted);

/* A completion with TAG_WRITE, TAG_RETRY or TAG_FLUSH. */
void storage_complete(struct storage *s, enum uring_tag tag, uint32_t index, int result);
/* A full batch gets its place, if there is one now. */
void storage_place_full(struct storage *s);
static inline void storage_place(struct storage *s) {
    if (s->batches.open != NULL && s->batches.open->full && !s->place_waits)
        storage_place_full(s);
}
/* Once a turn. Returns when to call again at the latest. */
uint64_t storage_turn(struct storage *s);
/* What has happened, oldest first; false: no more. Holds stay readable until the next call. */
bool storage_next_news(struct storage *s, struct storage_news *out);
/* Cheap: it is called behind each completion of storage's, and mostly there is none. */
static inline bool storage_may_have_news(const struct storage *s) {
    return s->done_head != BATCH_NONE || s->failed_pending || s->full_pending ||
           writer_may_have_ack(&s->writer);
}

/* Everything taken is committed, every segment is closed. */
bool storage_is_finished(const struct storage *s);
/* Whether flows that wait for room wait for the device. */
bool storage_is_behind(const struct storage *s);

/* The errno that made the store fail, or 0. */
static inline int storage_error(const struct storage *s) {
    return s->error;
}

/* There is no room, and will be none, but for CLOSE records. */
static inline bool storage_is_exhausted(const struct storage *s) {
    return s->state == STORAGE_EXHAUSTED || s->state == STORAGE_RESERVE_EXHAUSTED;
}

#endif
