/* SPDX-License-Identifier: Apache-2.0
 *
 * The simulator: the whole worker as built, against a kernel, a disk, a network and a Python side
 * that are played here. All of it lies below and beside the core: liburing's functions, the libc
 * calls that seam.txt names, and the core's public border.
 *
 *   sim SEED STEPS IMAGE < life    one life of a store; see sim_main.c
 *
 * Invariants: all that is random follows from SEED; there is no other clock than sim.now_ns, no
 * thread, and nothing depends on where memory lies. What happens is a line of the trace, and the
 * trace's hash is the same whenever the seed and the life are.
 */
#ifndef INGESTD_TESTS_SIM_H
#define INGESTD_TESTS_SIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdint.h>
#include <stdnoreturn.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define US 1000ull
#define MS 1000000ull
#define SECOND 1000000000ull
#define NEVER UINT64_MAX

#define BLOCK 4096u /* a hello, and a trailer */
#define SEGMENT_BYTES (1u << 20)
#define SEGMENTS_OFFSET_BYTES (1u << 20)
#define SEGMENTS_COUNT_MAX 80u
#define SOCKETS_MAX 256u
#define STREAMS_MAX 96u
#define STREAM_PERIOD 65521u
#define SAFE_AHEAD_MAX 128u
#define OPERATIONS_MAX 16384u
#define LISTENERS_COUNT 2u /* one raw, one of protocol ingest */
#define HOSTS_COUNT 5u     /* senders come from 10.0.0.1 and those behind it */

/* Descriptors, all played. */
#define FD_STORE 900
#define FD_RING 901
#define FD_EVENTFD 910
#define FD_LISTENER 920
#define FD_SOCKET 1000

/* Of rx queues: the worker's, and another one. */
#define NAPI_OWN 5u
#define NAPI_OTHER 7u

/* What this life is like. */
struct shape {
    uint64_t steps_max;
    uint64_t crash_step; /* power fails here; NEVER: the life ends by a drain */
    uint64_t drain_step; /* it is drained here, whatever is under way; NEVER: when all is over */
    uint32_t engine, interface_index, rx_buf_len, chunk_bytes;
    bool checksum, is_file, is_crowd, is_full, keeps_bounds, small_packets;
    bool is_plain; /* for make bench-core: nothing rare happens */
    uint32_t mem_align, write_align, virt_mask, iovecs_max, block_bytes;
    uint64_t area_bytes;
    uint32_t write_bytes_max, writes_in_flight_max, flows_max;
    uint64_t flush_interval_ns, commit_interval_ns, idle_timeout_ns, hello_timeout_ns;
    uint64_t ack_interval_ns;
    uint32_t sq_entries, cq_entries; /* the played ring's */
    uint32_t refill_entries;
    uint32_t senders_max, payload_max, receive_buffer_bytes;
    uint32_t part_record_bytes; /* so soon a part of a footer is written; 0: when it is full */
    /* One of so many; 0: none. */
    uint32_t write_trouble_of, flush_failure_of, slow_disk_of, reset_of, pause_of, wall_jump_of;
    uint32_t refused_submit_of, accept_failure_of, receive_end_of, late_answer_of, late_grant_of;
    uint32_t command_of, check_of;
    uint32_t removal_of;           /* flows are removed while the worker runs */
    uint32_t missed_cancel_of;     /* of a zero-copy receive: it goes on */
    uint32_t fragment_entries_max; /* fragments that the worker has room for; 0: as it likes */
    bool is_table_known;           /* ... beside those that two turns can bring, and it knows */
    bool tiny_packets;             /* many to a chunk */
    bool disk_dies, file_goes, is_queue_owned;
    uint32_t allow[LISTENERS_COUNT];    /* which of sim_border.c's allow lists */
    uint32_t per_peer[LISTENERS_COUNT]; /* connections of one peer; 0: no limit */
};

struct sim {
    uint64_t seed, step, now_ns;
    int64_t wall_delta_ns;
    struct shape shape;
    bool calm;      /* nothing new comes, and nothing fails any more */
    bool power_off; /* the life is over: the kernel takes nothing more */
    bool draining;
    uint64_t calm_step, calm_ns;
    uint64_t generation;
    uint32_t sequences_used; /* of the generation: the opening may have made a segment */
    uint8_t uuid[16];
    uint32_t segments[SEGMENTS_COUNT_MAX], segments_count, segments_granted;
    uint32_t store_segments;
    uint64_t receives_count, received_bytes; /* of receives that brought bytes */
    bool store_failed; /* the worker was given a reason to give its store up */
};
extern struct sim sim;

/* --- sim_trace.c --- */
uint64_t sim_random(void);
uint32_t sim_below(uint32_t limit);
bool sim_one_of(uint32_t count); /* true once in so many; never for 0, or if is_plain */
uint64_t sim_time_below(uint64_t limit_ns);
void sim_log(const char *format, ...) __attribute__((format(printf, 1, 2)));
noreturn void sim_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
void sim_trace_open(const char *path);
uint64_t sim_hash(void);
uint32_t sim_crc32c(uint32_t crc, const void *data, size_t bytes);

/* --- sim_kernel.c --- */
enum ready { READY_NOT, READY_DONE, READY_MORE };
struct operation {
    uint64_t user_data, offset, not_before_ns;
    uint64_t bound;    /* RECV_ZC: bytes that it may bring yet */
    uint64_t progress; /* bytes received or sent so far */
    uint8_t *memory;
    uint32_t bytes, flags;
    int fd;
    uint8_t opcode;
    bool is_cancelled;
    uint64_t cancelled_step;
    struct socket_ *socket; /* or NULL */
    struct disk_write *write;
    struct sockaddr_storage *peer;
    socklen_t *peer_bytes;
};
bool sim_post(uint64_t user_data, int result, uint32_t flags, uint64_t more);
bool sim_has_room(void);
bool sim_ring_is_empty(void);
bool sim_rings_wide(void);
bool sim_is_registered(const uint8_t *at, uint64_t bytes);
uint64_t sim_operations_count(void);
void sim_wake_at(uint64_t time_ns); /* something is to happen then */

/* --- sim_disk.c --- */
void disk_open(const char *path);
void disk_submit(struct operation *o, const struct iovec *iov, uint32_t count, bool is_stable);
enum ready disk_complete(struct operation *o);
void disk_flush_submit(struct operation *o);
enum ready disk_flush_complete(struct operation *o);
/* --- sim_records.c: a batch on its way to the disk says whose bytes it has --- */
void records_submitted(const uint8_t *data, uint64_t bytes, uint64_t offset);
void records_check(const uint8_t *data, uint64_t bytes);
void records_safe(const uint8_t *data, uint64_t bytes, bool is_whole);
/* Nobody may reuse memory from which a write under way reads. */
void disk_check_free(const uint8_t *at, uint64_t bytes, const char *what);
/* Lays what power failing now would leave into the image. */
void disk_lose_power(void);
void disk_dump(const char *path);
void disk_show(void); /* what lies there while there is power */
void disk_forget(void);
bool disk_is_quiet(void);
bool disk_is_there(void);
void disk_take(const char *path); /* writes of somebody else's, who has flushed them */

/* --- sim_network.c --- */
struct fragment {
    uint64_t offset; /* in the area */
    uint32_t bytes;
    bool is_copied; /* by the kernel when it is received; offset means nothing */
};
#define FRAGMENTS_MAX 1024u
struct socket_ {
    bool is_used, is_open; /* open: the worker has its descriptor */
    bool is_accepted, is_pending;
    bool has_sender; /* who looks at it yet */
    bool has_fin, has_reset, reset_told, shut_write, shut_read;
    uint32_t index, listener, operations, sender;
    uint16_t port;
    uint64_t arrived, read; /* of the sender's bytes */
    uint64_t last_data_ns;
    bool has_bound_window;            /* as it was given a buffer, and no window since */
    uint64_t starved_ns, starved_at;  /* a receive last found no chunk: when, and nic_returned() */
    uint32_t starved_count;           /* ... so often in a row */
    uint64_t buffer_bytes;            /* SO_RCVBUF; 0: what its listener has, or the kernel's own */
    uint32_t inbox_bytes, inbox_room; /* of what the worker sends: nobody has read it yet */
    char inbox[8192];
    struct fragment fragments[FRAGMENTS_MAX];
    uint32_t first, count;
    uint32_t chunk; /* being filled by the NIC; UINT32_MAX: none */
    uint32_t chunk_used;
    bool is_other_queue; /* its packets come by another rx queue, and are copied */
    bool is_served;      /* something was received of it, or asked for */
    uint8_t host;        /* last byte of its peer's address */
};
struct socket_ *socket_connect(uint32_t listener);
uint64_t socket_deliver(struct socket_ *s, uint64_t bytes); /* returns what arrived */
void socket_end(struct socket_ *s, bool reset);
void socket_settle(struct socket_ *s); /* one that nobody has any more is gone */
struct socket_ *socket_of(int fd);
uint64_t socket_buffer_bytes(const struct socket_ *s);
enum ready network_complete(struct operation *o);
bool network_has(const struct socket_ *s);
int socket_hand_over(struct socket_ *s); /* accepted by another worker: its descriptor */
void socket_served(struct socket_ *s);   /* the worker wants its bytes: it has let it in */

/* --- sim_nic.c --- */
int nic_register(uint32_t operation, void *argument);
void *nic_map(uint64_t bytes);
uint32_t nic_lay(struct socket_ *s, uint32_t bytes);
enum ready nic_complete(struct operation *o);
void nic_step(void);
void nic_drop(struct socket_ *s);
void nic_consume(struct socket_ *s, uint64_t bytes); /* read, or dropped, without zero copy */
void nic_close(void);
bool nic_is_mapped(const void *at);
bool nic_is_open(void);
uint64_t nic_fragments_out(void); /* with the worker */

/* --- sim_streams.c --- */
struct stream {
    uint32_t number, start; /* where in the common bytes */
    bool is_ingest, is_used;
    uint8_t id[16];
    uint64_t payload_bytes; /* the whole flow's, as its sender would have it */
    uint64_t sent_bytes;    /* at most, of the flow */
    uint64_t told_bytes;    /* durable, as its senders know */
    uint64_t base_bytes;    /* where the next connection goes on */
    uint32_t base_crc;
    bool base_crc_known, is_resumable, is_begun;
    bool is_sealed, was_ended; /* its sender has the receipt; ... another last line */
    bool failed;               /* ... that says that the store has failed */
    bool is_removed;
    uint64_t ahead[SAFE_AHEAD_MAX][2];
    uint32_t ahead_count; /* safe ranges behind a gap */
    uint64_t safe_bytes;  /* of it, on stable media */
    bool is_safe_unknown; /* not followed: writes were short */
    uint16_t port;        /* of a raw flow's connection */
    uint64_t final_bytes;
    int owner; /* sender that feeds it, or -1 */
};
extern struct stream streams[STREAMS_MAX];
extern uint32_t streams_count;
void streams_open(void);
void streams_report(FILE *out);
void stream_carry(const char *line); /* it goes on from an earlier life */
uint8_t common_byte(uint64_t at);
void stream_bytes(const struct stream *s, uint64_t at, uint8_t *out, uint64_t bytes);
uint32_t stream_crc(const struct stream *s, uint64_t bytes);

/* --- sim_senders.c --- */
void senders_step(void);
void sender_wire(struct socket_ *s, uint64_t at, uint8_t *out, uint32_t bytes);
void senders_listen(void);
bool senders_are_over(void);
void senders_calm(void);
struct stream *stream_of_hello(const uint8_t *block, uint32_t *sender);
void sender_check_trailer(uint32_t sender, const uint8_t *block, uint64_t bytes);
bool sender_states_length(uint32_t sender);
bool sender_has_trailer(uint32_t sender);
bool sender_waits(uint32_t sender);
void sender_admitted(uint32_t sender, uint64_t base);
void sender_moves(uint32_t sender);

/* --- sim_border.c: Python's side of the core's border --- */
void border_open(void);
int border_run(void);
void border_step(void);
void border_sleep(void); /* the worker waits for something, or for the time */
void border_wake(void);  /* time has passed while the worker sleeps */
void border_drain(void);
int sim_close(int fd);
void border_close(void);
bool border_has_ended_well(void);
void border_adopt(int fd, uint32_t listener, uint64_t move_id);
bool border_allows(uint32_t listener, uint8_t host);

/* --- sim_accounts.c: what needs the worker's inner fields --- */
void accounts_check(void *worker);
void accounts_check_lost(const void *event_detail);
void accounts_cut_table(void *worker, uint32_t entries_max, bool is_known);
void accounts_check_sleep(void *worker);
bool accounts_has_failed(const void *worker);
bool accounts_are_empty(const void *worker);

/* --- sim_main.c --- */
void sim_check_point(const char *why); /* the driver looks at the image */
void sim_removal_point(void);          /* ... removes flows */

#endif
