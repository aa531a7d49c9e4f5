/* SPDX-License-Identifier: Apache-2.0
 *
 * dm-delay by the device mapper's own requests: see delay.h. One slow device at a time.
 */
#define _GNU_SOURCE
#include "delay.h"
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <linux/fs.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define NAME "slow"
#define SECTOR_BYTES 512u
#define PARAMETERS_BYTES 256
#define BUSY_TRIES 100
#define BUSY_PAUSE_US 50000

struct request {
    struct dm_ioctl head;
    struct dm_target_spec target;
    char parameters[PARAMETERS_BYTES];
};

static void begin(struct request *r, uint32_t flags) {
    memset(r, 0, sizeof(*r));
    r->head.version[0] = DM_VERSION_MAJOR;
    r->head.data_size = sizeof(*r);
    r->head.data_start = offsetof(struct request, target);
    r->head.flags = flags;
    snprintf(r->head.name, sizeof(r->head.name), NAME);
}

static int try(unsigned long operation, struct request *r) {
    int control = open("/dev/mapper/control", O_RDWR | O_CLOEXEC);

    CHECK(control >= 0, "/dev/mapper/control: %m");
    int result = ioctl(control, operation, r);
    close(control);
    return result;
}

static void ask(unsigned long operation, struct request *r, const char *what) {
    CHECK(try(operation, r) == 0, "%s the slow device: %m", what);
}

/* Requests that wait in a suspended device are let go, or its users would never end. */
static void remove_leftovers(void) {
    struct request r;

    begin(&r, 0);
    if (try(DM_DEV_SUSPEND, &r) == 0)
        delay_remove();
}

static uint64_t device_sectors(const char *device) {
    uint64_t bytes;
    int fd = open(device, O_RDONLY | O_CLOEXEC);

    CHECK(fd >= 0 && ioctl(fd, BLKGETSIZE64, &bytes) == 0, "%s: %m", device);
    close(fd);
    return bytes / SECTOR_BYTES;
}

static uint64_t sectors;

/* Tries again while the kernel answers that the device is in use: a program that used it may have
 * ended, and its ring not yet. */
static void ask_patiently(unsigned long operation, struct request *r, const char *what) {
    const struct request question = *r;
    int result = -1;

    for (int tries = 0; tries < BUSY_TRIES; tries++) {
        *r = question;
        result = try(operation, r);
        if (result == 0 || errno != EBUSY)
            break;
        usleep(BUSY_PAUSE_US);
    }
    CHECK(result == 0, "%s the slow device: %m", what);
}

static void load_table(const char *target, const char *parameters) {
    struct request r;

    begin(&r, 0);
    r.head.target_count = 1;
    r.target.length = sectors;
    snprintf(r.target.target_type, sizeof(r.target.target_type), "%s", target);
    snprintf(r.parameters, sizeof(r.parameters), "%s", parameters);
    ask_patiently(DM_TABLE_LOAD, &r, "loading the table of");
}

void delay_create(const char *device, unsigned write_delay_ms, char path[DELAY_PATH_BYTES]) {
    char parameters[PARAMETERS_BYTES];
    struct request r;

    remove_leftovers();
    begin(&r, 0);
    ask(DM_DEV_CREATE, &r, "creating");
    snprintf(path, DELAY_PATH_BYTES, "/dev/dm-%u", minor(r.head.dev));
    sectors = device_sectors(device);
    /* Device, offset, delay: of reads, then of writes, which flushes go with. */
    snprintf(parameters, sizeof(parameters), "%s 0 0 %s 0 %u", device, device, write_delay_ms);
    load_table("delay", parameters);
    delay_suspend(false);
}

void delay_break(void) {
    delay_suspend(true);
    load_table("error", "");
    delay_suspend(false);
}

void delay_suspend(bool on) {
    struct request r;

    begin(&r, on ? DM_SUSPEND_FLAG | DM_SKIP_LOCKFS_FLAG | DM_NOFLUSH_FLAG : 0);
    ask(DM_DEV_SUSPEND, &r, on ? "suspending" : "resuming");
}

void delay_remove(void) {
    struct request r;

    begin(&r, 0);
    ask_patiently(DM_DEV_REMOVE, &r, "removing");
}
