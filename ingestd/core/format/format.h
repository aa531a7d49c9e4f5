/* SPDX-License-Identifier: Apache-2.0
 *
 * The store's on-disk format: structs and constants, nothing else.
 *
 * Invariants:
 *  - Every integer is little-endian; every struct is laid out without holes
 *    and its size is asserted here and compared with ingestd/store/format/layout.py
 *    by a test.
 *  - Positions are multiples of block_bytes, which is taken from the device
 *    (at least 4096), so that a store can move between devices.
 *  - A CRC32C field covers its struct (or region) with the field itself as 0.
 *
 * docs/format.md describes the same byte by byte, with the rules of recovery.
 */
#ifndef INGESTD_FORMAT_FORMAT_H
#define INGESTD_FORMAT_FORMAT_H

#include <assert.h>
#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the store format is little-endian and written as it lies in memory"
#endif

#define FORMAT_VERSION 2u
#define FORMAT_UUID_BYTES 16

#define SUPERBLOCK_MAGIC "INGESTSB"
#define SEGMENT_MAGIC "INGESTSG"
#define MARK_MAGIC "INGESTMK"
#define BATCH_MAGIC "INGESTBT"
#define FOOTER_MAGIC "INGESTFT"
#define PART_MAGIC "INGESTFP"
#define FORMAT_MAGIC_BYTES 8

/* Superblock A lies at byte 0, superblock B here; segments begin behind both. */
#define SUPERBLOCK_B_OFFSET (512u * 1024u)
#define SEGMENTS_OFFSET (1024u * 1024u)

/* Blocks of a segment: header, two commit marks written in turn, one in reserve. */
#define SEGMENT_HEADER_BLOCK 0u
#define SEGMENT_MARK_BLOCK 1u
#define SEGMENT_MARKS_COUNT 2u
#define SEGMENT_DATA_BLOCK 4u

#define BLOCK_BYTES_MIN 4096u
#define BLOCK_BYTES_MAX 65536u
#define SEGMENT_BYTES_MIN (1024u * 1024u)
#define SEGMENT_BYTES_MAX (1024u * 1024u * 1024u)
#define BATCH_HEADER_BYTES_MAX 65536u
#define RECORD_TEXT_BYTES_MAX 2048u

struct superblock {
    char magic[8];
    uint32_t crc32c; /* of all 4096 bytes */
    uint32_t version;
    uint8_t store_uuid[16];
    uint64_t generation; /* raised, durably, by every opening for writing */
    uint64_t store_bytes;
    uint64_t segments_offset;
    uint64_t segment_bytes;
    uint32_t segment_count;
    uint32_t block_bytes;
    uint64_t created_ns; /* Unix time */
    char label[64];      /* UTF-8, padded with zeros */
    uint8_t zero[3952];
};
static_assert(sizeof(struct superblock) == 4096, "superblock");

/* First 4096 bytes of a segment's header block.
 * segment_sequence = superblock generation << 32 | counter from 1: never used
 * twice in the life of a store, which distinguishes bytes of a previous generation. */
struct segment_header {
    char magic[8];
    uint32_t crc32c; /* of all 4096 bytes */
    uint32_t version;
    uint8_t store_uuid[16];
    uint64_t segment_sequence;
    uint32_t segment_index;
    uint32_t worker_index;
    uint64_t opened_ns;
    uint8_t zero[4040];
};
static_assert(sizeof(struct segment_header) == 4096, "segment_header");

/* First 4096 bytes of a mark block: what of this segment is on stable media.
 * Marks alternate between the two blocks; the valid one with the higher
 * mark_sequence counts. */
struct commit_mark {
    char magic[8];
    uint32_t crc32c; /* of all 4096 bytes */
    uint32_t version;
    uint8_t store_uuid[16];
    uint64_t segment_sequence;
    uint64_t mark_sequence;
    uint32_t batches_committed; /* batches 0..n-1 are on stable media */
    uint32_t reserved;
    uint64_t committed_end; /* byte of the segment behind the last of them */
    uint8_t zero[4032];
};
static_assert(sizeof(struct commit_mark) == 4096, "commit_mark");

#define BATCH_HAS_CRC32C 1u /* the extents' crc fields are filled in */
#define BATCH_IS_PART 2u    /* has no records; behind its header lies a footer_part */

/* A batch: this header, its records, zeros up to header_bytes, then payload. */
struct batch_header {
    char magic[8];
    uint32_t crc32c;       /* of the first header_bytes bytes */
    uint32_t header_bytes; /* multiple of block_bytes */
    uint8_t store_uuid[16];
    uint64_t segment_sequence;
    uint32_t batch_index;       /* 0, 1, ... in its segment */
    uint32_t batches_committed; /* of this segment, known when this was made */
    uint64_t batch_bytes;       /* header + payload + padding; multiple of block_bytes */
    uint32_t record_count;
    uint32_t record_bytes; /* used by records behind this struct */
    uint32_t flags;
    uint32_t reserved;
    uint64_t payload_bytes; /* sum of the extents' bytes */
    uint64_t made_ns;       /* Unix time */
    uint8_t zero[40];
};
static_assert(sizeof(struct batch_header) == 128, "batch_header");

enum record_kind {
    RECORD_EXTENT = 1, /* a run of a flow's bytes in this batch's payload */
    RECORD_OPEN = 2,   /* a connection begins to feed a flow */
    RECORD_CLOSE = 3,  /* a flow is sealed or interrupted */
    RECORD_SPAN = 4,   /* footers only: what of a flow lies in this segment */
};

/* Every record begins with this and is record_bytes long, a multiple of 8. */
struct record_head {
    uint16_t kind;
    uint16_t record_bytes;
    uint32_t flags;
    uint8_t flow[16];
};
static_assert(sizeof(struct record_head) == 24, "record_head");

/* Stream bytes [stream_offset, + bytes) lie at payload_offset behind the batch's
 * header. crc_before is the CRC32C of the flow's bytes before the extent, and
 * crc_after of those including it: one pass checks the extent and the flow. */
struct record_extent {
    struct record_head head;
    uint64_t stream_offset;
    uint32_t payload_offset;
    uint32_t bytes;
    uint32_t crc_before;
    uint32_t crc_after;
};
static_assert(sizeof(struct record_extent) == 48, "record_extent");

/* Followed by three texts in UTF-8 without terminators: listener, name, labels
 * (key=value, one a line), then zeros to a multiple of 8. */
struct record_open {
    struct record_head head;
    uint64_t started_ns;
    uint64_t stream_offset; /* where this connection begins in the flow */
    uint8_t peer_address[16];
    uint16_t peer_port;
    uint8_t peer_family; /* 4, 6; 0: unknown */
    uint8_t protocol;    /* 1 raw, 2 ingest */
    uint16_t listener_bytes;
    uint16_t name_bytes;
    uint16_t labels_bytes;
    uint16_t reserved[3];
};
static_assert(sizeof(struct record_open) == 72, "record_open");

/* record_open.protocol */
#define PROTOCOL_RAW 1u
#define PROTOCOL_INGEST 2u

enum flow_state { FLOW_STATE_OPEN = 0, FLOW_STATE_SEALED = 1, FLOW_STATE_INTERRUPTED = 2 };

enum close_reason {
    CLOSE_REASON_NONE = 0,       /* sealed by the sender's half-close */
    CLOSE_REASON_PEER = 1,       /* connection reset or lost */
    CLOSE_REASON_IDLE = 2,       /* idle_timeout_s passed without a byte */
    CLOSE_REASON_SHUTDOWN = 3,   /* the daemon stopped */
    CLOSE_REASON_STORE_FULL = 4, /* on_full = "reject" */
    CLOSE_REASON_LIMIT = 5,      /* a limit of the listener was reached */
    CLOSE_REASON_REPLACED = 6,   /* a newer connection took the flow over */
    CLOSE_REASON_CHECKSUM = 7,   /* the sender's checksum did not match, or did not come */
    CLOSE_REASON_LENGTH = 8,     /* the sender sent fewer or more bytes than announced */
    CLOSE_REASON_RECEIVER = 9,   /* the receiver could not continue */
    CLOSE_REASON_EMPTY = 10,     /* in no record: no byte came, and so nothing is kept */
};

#define CLOSE_HAS_CRC32C 1u        /* in head.flags: crc32c is known */
#define CLOSE_HAS_SENDER_CRC32C 2u /* in head.flags: sender_crc32c is known */

struct record_close {
    struct record_head head;
    uint64_t stream_bytes; /* the flow's length at this point */
    uint64_t ended_ns;
    uint32_t state; /* enum flow_state */
    uint32_t reason;
    uint32_t crc32c;
    uint32_t sender_crc32c;
};
static_assert(sizeof(struct record_close) == 56, "record_close");

#define SPAN_HAS_OPEN 1u  /* in head.flags: this segment holds an OPEN record */
#define SPAN_HAS_CLOSE 2u /* ... and a CLOSE record */

/* One per flow and closed segment. Within one segment a flow's extents are in
 * stream order and without holes: [first_offset, end_offset). */
struct record_span {
    struct record_head head;
    uint64_t first_offset;
    uint64_t end_offset;
    uint32_t first_batch_block; /* blocks from the segment's start */
    uint32_t last_batch_block;  /* last batch with any record of the flow */
    uint32_t crc_before;
    uint32_t crc_after;
};
static_assert(sizeof(struct record_span) == 56, "record_span");

/* A part of the footer, written as a batch before the segment is closed: the first
 * 4096 bytes of the block behind the batch's header. Its records (copies of OPEN and
 * CLOSE records, then SPANs) begin one block behind it, and are those of the batches
 * between the previous part and this one. */
struct footer_part {
    char magic[8];
    uint32_t crc32c; /* of all 4096 bytes */
    uint32_t version;
    uint8_t store_uuid[16];
    uint64_t segment_sequence;
    uint32_t part_number; /* 1, 2, ... in its segment */
    uint32_t record_count;
    uint64_t record_bytes;
    uint64_t previous_offset;       /* of the part before, from the segment's start; 0: none */
    uint64_t previous_record_bytes; /* its record_bytes: one read takes all of it */
    uint32_t records_crc32c;
    uint32_t span_count;
    uint8_t zero[4016];
};
static_assert(sizeof(struct footer_part) == 4096, "footer_part");

/* First 4096 bytes of a closed segment's last block. The records that no part has
 * (copies of OPEN and CLOSE records, then SPANs) lie at records_offset of the
 * segment. A footer is written only after all batches of its segment are on
 * stable media, so it stands for a commit mark of all of them. */
struct segment_footer {
    char magic[8];
    uint32_t crc32c; /* of all 4096 bytes */
    uint32_t version;
    uint8_t store_uuid[16];
    uint64_t segment_sequence;
    uint32_t batch_count;
    uint32_t record_count;
    uint64_t records_offset; /* bytes from the segment's start, multiple of block_bytes */
    uint64_t record_bytes;
    uint64_t batches_end; /* byte of the segment behind the last batch */
    uint64_t payload_bytes;
    uint64_t closed_ns;
    uint32_t records_crc32c; /* of record_bytes bytes at records_offset */
    uint32_t span_count;
    uint64_t last_part_offset; /* from the segment's start; 0: it has none */
    uint64_t last_part_record_bytes;
    uint32_t part_count;
    uint32_t reserved;
    uint8_t zero[3976];
};
static_assert(sizeof(struct segment_footer) == 4096, "segment_footer");

#endif
