/* SPDX-License-Identifier: Apache-2.0
 *
 * Direct I/O on a device: see device.h.
 */
#define _GNU_SOURCE
#include "device.h"
#include "check.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PATH_BYTES_MAX 256
#define READ_ALIGN 4096u

static uint32_t queue_limit(const char *device, const char *name) {
    char path[PATH_BYTES_MAX];
    unsigned value;

    snprintf(path, sizeof(path), "/sys/block/%s/queue/%s", strrchr(device, '/') + 1, name);
    FILE *file = fopen(path, "r");
    CHECK(file, "%s: %m", path);
    int found = fscanf(file, "%u", &value);
    fclose(file);
    CHECK(found == 1, "%s holds no number", path);
    return value;
}

void device_open(struct device *device, const char *path) {
    uint32_t boundary_mask = queue_limit(path, "virt_boundary_mask");

    device->path = path;
    device->fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
    CHECK(device->fd >= 0, "%s: %m", path);
    device->logical_block_bytes = queue_limit(path, "logical_block_size");
    device->memory_align_bytes = queue_limit(path, "dma_alignment") + 1;
    device->virtual_boundary = boundary_mask ? boundary_mask + 1 : 0;
}

uint64_t device_total_bytes(const struct iovec *pieces, int count) {
    uint64_t total = 0;

    for (int index = 0; index < count; index++)
        total += pieces[index].iov_len;
    return total;
}

bool device_takes(const struct device *device, const struct iovec *pieces, int count) {
    uint32_t boundary = device->virtual_boundary;
    uint64_t before = 0;

    if (device_total_bytes(pieces, count) % device->logical_block_bytes)
        return false;
    for (int index = 0; index < count; index++) {
        uintptr_t begin = (uintptr_t)pieces[index].iov_base;
        uintptr_t end = begin + pieces[index].iov_len;

        if ((begin | end) % device->memory_align_bytes)
            return false;
        if (boundary && index > 0 &&
            (begin % boundary ||
             ((uintptr_t)pieces[index - 1].iov_base + pieces[index - 1].iov_len) % boundary)) {
            /* A gap: the kernel must split here, which it can between two blocks only. */
            if (before % device->logical_block_bytes)
                return false;
        }
        before += pieces[index].iov_len;
    }
    return true;
}

char *device_read(const struct device *device, uint64_t offset, uint64_t bytes) {
    uint64_t rounded = (bytes + READ_ALIGN - 1) / READ_ALIGN * READ_ALIGN;
    char *data = aligned_alloc(READ_ALIGN, rounded);

    CHECK(data, "no memory to read back %llu bytes", (unsigned long long)bytes);
    for (uint64_t done = 0; done < bytes;) {
        ssize_t got = pread(device->fd, data + done, rounded - done, (off_t)(offset + done));
        CHECK(got > 0, "reading %s at %llu: %m", device->path, (unsigned long long)(offset + done));
        done += (uint64_t)got;
    }
    return data;
}
