/* SPDX-License-Identifier: Apache-2.0
 *
 * The device mapper's requests: see mapper.h. Their layout is that of linux/dm-ioctl.h.
 */
#define _GNU_SOURCE
#include "mapper.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <linux/fs.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define SECTOR_BYTES 512u
#define TEXT_BYTES_MAX 480
#define BUSY_TRIES 100
#define BUSY_PAUSE_US 50000

struct request {
    struct dm_ioctl head;
    union {
        struct {
            struct dm_target_spec target;
            char parameters[TEXT_BYTES_MAX];
        };
        struct {
            struct dm_target_msg message;
            char text[TEXT_BYTES_MAX];
        };
    };
};

static void begin(struct request *r, const char *name, uint32_t flags) {
    memset(r, 0, sizeof(*r));
    r->head.version[0] = DM_VERSION_MAJOR;
    r->head.data_size = sizeof(*r);
    r->head.data_start = offsetof(struct request, target);
    r->head.flags = flags;
    snprintf(r->head.name, sizeof(r->head.name), "%s", name);
}

static int ask(unsigned long operation, struct request *r) {
    int control = open("/dev/mapper/control", O_RDWR | O_CLOEXEC);
    int code;

    if (control < 0)
        return -errno;
    code = ioctl(control, operation, r) < 0 ? -errno : 0;
    close(control);
    return code;
}

static int ask_patiently(unsigned long operation, struct request *r) {
    const struct request question = *r;
    int code = ask(operation, r);

    for (int tries = 1; tries < BUSY_TRIES && code == -EBUSY; tries++) {
        usleep(BUSY_PAUSE_US);
        *r = question;
        code = ask(operation, r);
    }
    return code;
}

static int find(unsigned long operation, const char *name, char path[MAPPER_PATH_BYTES]) {
    struct request r;

    begin(&r, name, 0);
    int code = ask(operation, &r);
    snprintf(path, MAPPER_PATH_BYTES, "/dev/dm-%u", minor(r.head.dev));
    return code;
}

int mapper_create(const char *name, char path[MAPPER_PATH_BYTES]) {
    return find(DM_DEV_CREATE, name, path);
}

int mapper_path(const char *name, char path[MAPPER_PATH_BYTES]) {
    return find(DM_DEV_STATUS, name, path);
}

int mapper_load(const char *name, const char *target, uint64_t sectors, const char *parameters) {
    struct request r;

    begin(&r, name, 0);
    r.head.target_count = 1;
    r.target.length = sectors;
    snprintf(r.target.target_type, sizeof(r.target.target_type), "%s", target);
    snprintf(r.parameters, sizeof(r.parameters), "%s", parameters);
    return ask_patiently(DM_TABLE_LOAD, &r);
}

int mapper_suspend(const char *name, bool on) {
    struct request r;

    begin(&r, name, on ? DM_SUSPEND_FLAG | DM_SKIP_LOCKFS_FLAG | DM_NOFLUSH_FLAG : 0);
    return ask(DM_DEV_SUSPEND, &r);
}

int mapper_message(const char *name, const char *message) {
    struct request r;

    begin(&r, name, 0);
    snprintf(r.text, sizeof(r.text), "%s", message);
    return ask(DM_TARGET_MSG, &r);
}

int mapper_remove(const char *name) {
    struct request r;

    begin(&r, name, 0);
    return ask_patiently(DM_DEV_REMOVE, &r);
}

int mapper_sectors(const char *device, uint64_t *sectors) {
    uint64_t bytes = 0;
    int fd = open(device, O_RDONLY | O_CLOEXEC);
    int code = fd < 0 || ioctl(fd, BLKGETSIZE64, &bytes) < 0 ? -errno : 0;

    if (fd >= 0)
        close(fd);
    *sectors = bytes / SECTOR_BYTES;
    return code;
}
