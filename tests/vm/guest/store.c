/* SPDX-License-Identifier: Apache-2.0
 *
 * Opening and formatting a store: see store.h.
 */
#define _GNU_SOURCE
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "format/frame.h"

#define OPEN_TRIES 200
#define OPEN_PAUSE_US 50000

__attribute__((noreturn)) static void die(const char *path, const char *what) {
    fprintf(stderr, "%s: %s: %m\n", path, what);
    exit(2);
}

static void *blocks(uint64_t bytes) {
    void *memory = aligned_alloc(BLOCK_BYTES_MIN, bytes);

    if (!memory)
        die("store", "aligned_alloc");
    return memset(memory, 0, bytes);
}

static void write_superblocks(struct store *s, const char *path) {
    struct superblock *block = blocks(sizeof(*block));

    s->super.crc32c = 0;
    s->super.crc32c = frame_crc32c(0, &s->super, sizeof(s->super));
    *block = s->super;
    if (pwrite(s->fd, block, sizeof(*block), 0) != sizeof(*block) || fdatasync(s->fd) < 0 ||
        pwrite(s->fd, block, sizeof(*block), SUPERBLOCK_B_OFFSET) != sizeof(*block) ||
        fdatasync(s->fd) < 0)
        die(path, "writing the superblocks");
    free(block);
}

static void make_superblock(struct store *s, const char *path, uint64_t segment_bytes) {
    struct superblock *super = &s->super;
    int logical_bytes = 512;
    off_t store_bytes = lseek(s->fd, 0, SEEK_END);
    struct timespec now;

    if (store_bytes < (off_t)(SEGMENTS_OFFSET + segment_bytes))
        die(path, "too small for a store");
    ioctl(s->fd, BLKSSZGET, &logical_bytes); /* a file has none */
    clock_gettime(CLOCK_REALTIME, &now);
    *super = (struct superblock){
        .version = FORMAT_VERSION,
        .generation = 1,
        .store_bytes = (uint64_t)store_bytes,
        .segments_offset = SEGMENTS_OFFSET,
        .segment_bytes = segment_bytes,
        .segment_count = (uint32_t)(((uint64_t)store_bytes - SEGMENTS_OFFSET) / segment_bytes),
        .block_bytes =
            logical_bytes > (int)BLOCK_BYTES_MIN ? (uint32_t)logical_bytes : BLOCK_BYTES_MIN,
        .created_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec,
        .label = "virtual machine",
    };
    memcpy(super->magic, SUPERBLOCK_MAGIC, FORMAT_MAGIC_BYTES);
    if (getrandom(super->store_uuid, FORMAT_UUID_BYTES, 0) != FORMAT_UUID_BYTES)
        die(path, "getrandom");
}

static void read_superblock(struct store *s, const char *path) {
    struct superblock *block = blocks(sizeof(*block));
    uint32_t crc;

    if (pread(s->fd, block, sizeof(*block), 0) != sizeof(*block))
        die(path, "reading the superblock");
    s->super = *block;
    free(block);
    crc = s->super.crc32c;
    s->super.crc32c = 0;
    if (memcmp(s->super.magic, SUPERBLOCK_MAGIC, FORMAT_MAGIC_BYTES) != 0 ||
        crc != frame_crc32c(0, &s->super, sizeof(s->super)))
        die(path, "no store");
    s->super.generation++;
}

static bool is_free(const struct store *s, uint32_t index) {
    struct segment_header *header = blocks(sizeof(*header));
    off_t offset = (off_t)(s->super.segments_offset + index * s->super.segment_bytes);
    bool read = pread(s->fd, header, sizeof(*header), offset) == sizeof(*header);
    bool used = memcmp(header->magic, SEGMENT_MAGIC, FORMAT_MAGIC_BYTES) == 0 &&
                memcmp(header->store_uuid, s->super.store_uuid, FORMAT_UUID_BYTES) == 0;

    free(header);
    return read && !used;
}

/* Read ahead of time, as the daemon does it: grants never wait for a device that hangs. */
static void find_free(struct store *s) {
    s->free_indexes = calloc(s->super.segment_count, sizeof(*s->free_indexes));
    if (!s->free_indexes)
        die("store", "calloc");
    for (uint32_t index = 0; index < s->super.segment_count; index++)
        if (is_free(s, index))
            s->free_indexes[s->free_count++] = index;
}

void store_open(struct store *s, const char *path, uint64_t segment_bytes) {
    memset(s, 0, sizeof(*s));
    /* A server that was killed holds the device until the kernel has taken its ring down. */
    for (int tries = 0; tries < OPEN_TRIES; tries++) {
        s->fd = open(path, O_RDWR | O_DIRECT | O_EXCL | O_CLOEXEC);
        if (s->fd >= 0 || errno != EBUSY)
            break;
        usleep(OPEN_PAUSE_US);
    }
    if (s->fd < 0)
        die(path, "open");
    if (segment_bytes != 0)
        make_superblock(s, path, segment_bytes);
    else
        read_superblock(s, path);
    write_superblocks(s, path);
    find_free(s);
}

bool store_take(struct store *s, uint32_t *index, uint64_t *sequence) {
    if (s->free_next == s->free_count)
        return false;
    *index = s->free_indexes[s->free_next++];
    *sequence = s->super.generation << 32 | ++s->next_counter;
    return true;
}
