/* SPDX-License-Identifier: Apache-2.0
 *
 * Commands to a worker and events from it.
 *
 * Commands: any thread posts under a mutex, the worker's thread takes; an
 * eventfd wakes its ring. Events: the worker's thread is the only writer, one
 * reader at a time; when the reader is late, events are dropped and counted,
 * so nothing that must not be lost may travel as an event only.
 */
#ifndef INGESTD_BASE_MAILBOX_H
#define INGESTD_BASE_MAILBOX_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/fault.h"

#define COMMANDS_MAX 256u
#define EVENTS_MAX 4096u
#define EVENT_PEER_BYTES 64
#define WAKE_INTERVAL_NS 1000000ull

enum command_kind {
    COMMAND_GRANT_SEGMENT = 1,
    COMMAND_STORE_FULL = 2,
    COMMAND_STOP_ACCEPTING = 3,
    COMMAND_DRAIN = 4,
    COMMAND_SET_FLUSH_INTERVAL = 5,
    COMMAND_SET_COMMIT_INTERVAL = 6,
    COMMAND_SET_IDLE_TIMEOUT = 7,
    COMMAND_ADOPT = 8,
    COMMAND_END_FLOW = 9,
    COMMAND_FAIL_STORE = 10,
    COMMAND_PASS_ON = 11,
};

struct command_segment {
    uint32_t index;
    uint64_t sequence;
};

struct command_idle_timeout {
    uint32_t listener_index;
    uint64_t timeout_ns; /* 0: none */
};

struct command_adopt {
    int fd;
    uint32_t listener_index;
    uint64_t move_id; /* its hello is known to Python by this number; 0: it is new */
};

struct command_pass_on {
    uint32_t listener_index;
    bool wanted;
};

struct command_connection {
    uint32_t index; /* in the worker's table */
    uint64_t serial;
};

/* Its kind says which one of the rest it has. */
struct command {
    uint32_t kind; /* enum command_kind */
    union {
        struct command_segment segment;           /* GRANT_SEGMENT */
        uint64_t timeout_ns;                      /* DRAIN */
        uint64_t interval_ns;                     /* SET_FLUSH_INTERVAL, SET_COMMIT_INTERVAL */
        struct command_idle_timeout idle_timeout; /* SET_IDLE_TIMEOUT */
        struct command_adopt adopt;               /* ADOPT */
        struct command_pass_on pass_on;           /* PASS_ON */
        struct command_connection connection;     /* END_FLOW */
        int error;                                /* FAIL_STORE: an errno */
    };
};

enum event_kind {
    EVENT_FLOW_OPENED = 1,
    EVENT_FLOW_SEALED = 2,
    EVENT_FLOW_INTERRUPTED = 3,
    EVENT_FLOW_REFUSED = 4,
    EVENT_ACCEPT_FAILED = 5,
    EVENT_STORE_FAILED = 6,
    EVENT_STORE_FULL = 7,
    EVENT_WRITE_RETRIED = 8,
    EVENT_SEGMENT_OPENED = 9,
    EVENT_SEGMENT_CLOSED = 10,
    EVENT_BACKPRESSURE = 11,
    EVENT_FLOW_BY_COPY = 12,
    EVENT_FLOW_ELSEWHERE = 13,
    EVENT_HELLO_FAILED = 14,
    EVENT_FLOW_DENIED = 15,
};

struct event_seal {
    uint64_t durable_bytes;
    uint32_t crc; /* of all of the flow's bytes, if has_crc */
    bool has_crc;
};

struct event_end {
    uint32_t reason; /* enum close_reason */
    int error;       /* an errno, or 0 */
    uint64_t durable_bytes;
};

struct event_store_failure {
    int error;
    uint32_t what; /* enum storage_failure */
    uint64_t store_offset;
};

struct event_retry {
    int error;
    uint32_t tries;
    uint64_t store_offset;
};

struct event_segment {
    uint32_t index;
    uint64_t sequence;
};

/* Whichever worker Python gives the connection to. */
#define ELSEWHERE_ANY UINT32_MAX

struct event_elsewhere {
    uint32_t worker_index; /* as its engine knows the other worker, or ELSEWHERE_ANY */
    int fd;                /* it belongs to whoever reads the event */
};

struct event_hello {
    uint32_t error;  /* enum session_error, or 0 */
    uint32_t reason; /* enum close_reason */
};

struct event_denial {
    uint32_t why;   /* enum denial */
    uint32_t count; /* since the last such event */
};

/* Its kind says which one of the rest it has. */
struct event_detail {
    uint32_t kind; /* enum event_kind */
    union {
        uint64_t base_bytes;                      /* FLOW_OPENED */
        struct event_seal seal;                   /* FLOW_SEALED */
        struct event_end end;                     /* FLOW_INTERRUPTED, FLOW_REFUSED */
        int accept_error;                         /* ACCEPT_FAILED */
        struct event_store_failure store_failure; /* STORE_FAILED */
        struct event_retry retry;                 /* WRITE_RETRIED */
        struct event_segment segment;             /* SEGMENT_OPENED, SEGMENT_CLOSED */
        uint32_t backpressure;                    /* BACKPRESSURE: 0 ended, 1 area, 2 device */
        uint32_t napi_id;                         /* FLOW_BY_COPY */
        struct event_elsewhere elsewhere;         /* FLOW_ELSEWHERE */
        struct event_hello hello;                 /* HELLO_FAILED */
        struct event_denial denial;               /* FLOW_DENIED */
    };
};

struct event {
    struct event_detail detail;
    int32_t listener_index; /* -1: none */
    uint64_t time_ns;
    uint8_t flow[16];
    char peer[EVENT_PEER_BYTES];
};

struct mailbox {
    pthread_mutex_t lock;
    struct command commands[COMMANDS_MAX];
    uint32_t command_head, command_tail;
    uint32_t grants_wanted; /* segments to grant; under the lock, so none is granted twice */
    int command_fd;         /* eventfd that the worker's ring reads */

    struct event events[EVENTS_MAX];
    uint32_t event_head; /* read up to here */
    uint32_t event_tail; /* written up to here */
    int event_fd;
    bool event_pending; /* the reader is to be woken at the end of the turn */
    uint64_t woken_ns;
};

int mailbox_open(struct mailbox *m, struct fault *fault);
void mailbox_close(struct mailbox *m);

/* Any thread. Returns 0, -EAGAIN when the box is full, or -EINVAL for a grant
 * that nobody wants. */
int mailbox_post(struct mailbox *m, struct command c);
/* Any thread: the worker looks at its commands, and at responses to its requests. */
int mailbox_wake_worker(struct mailbox *m);
/* Any thread: how many segments are to be granted, and that one more is. */
uint32_t mailbox_grants_wanted(struct mailbox *m);
void mailbox_want_grant(struct mailbox *m);
/* Worker's thread. */
bool mailbox_take(struct mailbox *m, struct command *out);

/* Worker's thread: a slot to fill in and then publish, or NULL when the reader is late. */
struct event *mailbox_event(struct mailbox *m);
/* quiet: nobody needs to be woken for it; it is read with the next one. */
void mailbox_publish(struct mailbox *m, bool quiet);
/* Wakes the reader if something has happened, at most once in WAKE_INTERVAL_NS, so that
 * many short flows are reported in bulk. Returns when to call again at the latest. */
uint64_t mailbox_wake_reader(struct mailbox *m, uint64_t now_ns);
/* One reader at a time: copies the oldest event out. */
bool mailbox_read(struct mailbox *m, struct event *out);

#endif
