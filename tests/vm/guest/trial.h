/* SPDX-License-Identifier: Apache-2.0
 *
 * Parts of a test of the engine zcrx: a store on one of the machine's disks, a server and senders
 * as programs of their own, and the accounts that must agree whatever happened.
 */
#ifndef VM_TRIAL_H
#define VM_TRIAL_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "check.h"

#define TRIAL_PATH_BYTES 128

struct disk {
    const char *label;    /* names the store to the host */
    const char *variable; /* names the device: VM_DISK_..., VM_NULL..., ... */
    uint32_t segment_bytes;
    uint32_t mem_align; /* the truth about it, which the probe has to find */
    uint32_t virt_mask;
    bool lies; /* reports success and stores other bytes */
};

/* A program under way and what it prints. */
struct program {
    pid_t pid;
    char output[TRIAL_PATH_BYTES];
};

const struct disk *trial_disk(const char *label);
const char *trial_device(const struct disk *disk);

/* Makes a store on the disk; fails the case unless the core's probe finds what the disk is like. */
void trial_format(const struct disk *disk);

/* Runs the cases whose names have $VM_ONLY in them, or all; returns main's exit code. The first is
 * always run: it formats. */
int trial_run(const char *program, const struct check_case *cases, size_t count);

/* Waits until a server can have hugepages: the kernel may keep those of servers that are gone for
 * half a minute, in packets that wait on an idle CPU to be freed. */
void trial_await_hugepages(void);

/* Starts serve; the rest of its options as one text. Fails the case unless it gets ready. */
__attribute__((format(printf, 2, 3))) void trial_serve(struct program *p, const char *format, ...);

/* The same, but it need not get ready. */
__attribute__((format(printf, 2, 3))) void trial_launch(struct program *p, const char *format, ...);
/* Whether a line that begins so has been printed within so many seconds. */
bool trial_says(const struct program *p, const char *line, unsigned seconds);

/* Drains the server; fails the case unless it ends well. */
void trial_stop(struct program *p);
void trial_kill(struct program *p);
/* Waits for any program's end; returns its exit code. */
int trial_wait(struct program *p);

/* A counter, as printed last. */
uint64_t trial_value(const struct program *p, const char *name);
/* Has a running server print its counters, and gives one. */
uint64_t trial_value_now(const struct program *p, const char *name);

/* Starts send to the NIC's address from the peer's side, or to loopback from this one. What it
 * sends is noted for the host, as lying in the disk's store. */
__attribute__((format(printf, 4, 5))) void trial_send(struct program *p, const struct disk *disk,
                                                      const char *address, const char *format, ...);
/* Waits for its end; fails the case unless all went as it should. */
void trial_join(struct program *p);

/* Counters of the NIC's queues 1 to 3, summed, from one moment to another. */
struct nic_counters {
    uint64_t frags, niov_frags, drops, alloc_fail;
};
struct nic_counters trial_nic(void);

enum trial_path {
    PATH_ZERO_COPY, /* every byte came by net_iov */
    PATH_IMPERFECT, /* and some beside: the NIC splits imperfectly */
    PATH_OUTLIVED,  /* senders continued when the queue was an ordinary one again */
    PATH_SOCKET,    /* by the engine recv, which knows of no net_iov */
    PATH_COPY,      /* the kernel has copied: ordinary queue, or no device */
};

/* Every chunk came back: to the kernel as far as the core knows. */
void trial_check_returned(const struct program *p);
/* What must hold of every drained server: all that was received is durable, every chunk came back,
 * writes add up; of the path, that the NIC put everything into the area. */
void trial_check_accounts(const struct program *p, const struct nic_counters *before,
                          enum trial_path path);
/* Every byte was written from where it lay, or copied for one reason. */
void trial_check_sum(const struct program *p);
/* Copied bytes by reason are those that the fragments' shapes and the device ask for. */
void trial_check_bounces(const struct program *p);
/* One line of figures, for the reader. */
void trial_report(const struct program *p);

#endif
