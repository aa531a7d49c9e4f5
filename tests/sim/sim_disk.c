/* SPDX-License-Identifier: Apache-2.0
 *
 * The played disk: writes under way and not flushed, what power failing leaves of them, and a
 * device that takes nothing but what its profile says.
 *
 * Invariants: memory is read when a write completes, and must be as it was when it was asked for.
 * A write is safe once a flush that was asked for after its completion is complete, or once it is
 * complete itself if it was to be stable. Any other is kept, lost, or torn. What a failed flush
 * covered no later one vouches for.
 */
#include "sim.h"

#include <errno.h>
#include <fcntl.h>
#include <isa-l/crc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define WRITES_MAX 4096u

struct disk_write {
    uint64_t offset, bytes, whole_bytes;
    struct iovec *iov;
    uint32_t iov_count, crc;
    bool is_stable, is_done, is_forsaken, is_covered, is_short;
    uint8_t *data; /* of one that is complete */
};

static struct disk_write *writes[WRITES_MAX]; /* in the order in which they were asked for */
static uint32_t writes_count;
static uint8_t *safe, *image;
static uint64_t store_bytes;
static bool is_dead;
/* The store's file, with all that was not safe, is gone and takes writes all the same: deleted,
 * cut off, or not to be asked any more. */
static enum { FILE_IS_THERE, FILE_DELETED, FILE_CUT, FILE_UNKNOWN } file;

void disk_open(const char *path) {
    struct stat s;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &s) != 0)
        sim_fail("%s cannot be opened", path);
    store_bytes = (uint64_t)s.st_size;
    image = mmap(NULL, store_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    safe = malloc(store_bytes);
    if (image == MAP_FAILED || safe == NULL)
        sim_fail("no memory for the disk");
    memcpy(safe, image, store_bytes);
    close(fd);
}

static uint32_t memory_crc(const struct disk_write *d) {
    uint32_t crc = 0;
    for (uint32_t i = 0; i < d->iov_count; i++)
        crc = crc32_iscsi(d->iov[i].iov_base, (int)d->iov[i].iov_len, crc);
    return crc;
}

/* Also of the rest behind a short write: the device does not know that it is one. */
static void check_shape(const struct disk_write *d) {
    const struct shape *p = &sim.shape;
    if (d->iov_count > p->iovecs_max || d->iov_count == 0)
        sim_fail("a write has %u pieces", d->iov_count);
    if (d->offset % p->write_align != 0 || d->bytes % p->write_align != 0)
        sim_fail("a write begins or ends beside a block");
    if (d->offset < SEGMENTS_OFFSET_BYTES || d->offset + d->bytes > store_bytes)
        sim_fail("a write leaves the segments");
    for (uint32_t i = 0; i < d->iov_count; i++) {
        uint64_t begin = (uintptr_t)d->iov[i].iov_base, end = begin + d->iov[i].iov_len;
        if (begin % p->mem_align != 0 || end % p->mem_align != 0 || begin == end)
            sim_fail("piece %u of a write is empty, or not aligned", i);
        if (!sim_is_registered(d->iov[i].iov_base, d->iov[i].iov_len))
            sim_fail("piece %u of a write lies outside of what is registered", i);
        if ((i > 0 && (begin & p->virt_mask) != 0) ||
            (i + 1 < d->iov_count && (end & p->virt_mask) != 0))
            sim_fail("pieces %u of a write meet beside the virtual boundary", i);
    }
}

static uint64_t latency_ns(void) {
    uint64_t most = sim_one_of(sim.shape.slow_disk_of) ? 400 * MS : 2 * MS;
    if (sim.shape.is_plain)
        most = 200 * US;
    return 10 * US + sim_time_below(sim.calm ? MS : most);
}

void disk_submit(struct operation *o, const struct iovec *iov, uint32_t count, bool is_stable) {
    struct disk_write *d = calloc(1, sizeof *d);
    if (d == NULL || writes_count == WRITES_MAX)
        sim_fail("more is written than is played");
    d->iov = malloc(count * sizeof *iov);
    memcpy(d->iov, iov, count * sizeof *iov);
    d->iov_count = count;
    d->offset = o->offset;
    d->is_stable = is_stable;
    for (uint32_t i = 0; i < count; i++)
        d->bytes += iov[i].iov_len;
    d->whole_bytes = d->bytes;
    check_shape(d);
    for (uint32_t i = 0; i < writes_count; i++)
        if (!writes[i]->is_done && writes[i]->offset < d->offset + d->bytes &&
            d->offset < writes[i]->offset + writes[i]->bytes)
            sim_fail("two writes under way overlap at byte %llu", (unsigned long long)d->offset);
    records_submitted(d->iov[0].iov_base, d->iov[0].iov_len, d->offset);
    d->crc = memory_crc(d);
    writes[writes_count++] = o->write = d;
    o->not_before_ns = sim.now_ns + latency_ns();
    sim_wake_at(o->not_before_ns);
    sim_log("write %llu+%llu in %u %08x", (unsigned long long)d->offset,
            (unsigned long long)d->bytes, count, d->crc);
}

static void take_memory(struct disk_write *d, uint64_t bytes) {
    uint64_t at = 0;
    if (memory_crc(d) != d->crc)
        sim_fail("memory changed under the write to byte %llu", (unsigned long long)d->offset);
    d->data = malloc(d->bytes + 1);
    for (uint32_t i = 0; i < d->iov_count; i++) {
        memcpy(d->data + at, d->iov[i].iov_base, d->iov[i].iov_len);
        at += d->iov[i].iov_len;
    }
    records_check(d->data, d->bytes);
    d->bytes = bytes;
    d->is_done = true;
}

static void drop(uint32_t i) {
    free(writes[i]->iov);
    free(writes[i]->data);
    free(writes[i]);
    memmove(&writes[i], &writes[i + 1], (--writes_count - i) * sizeof *writes);
}

static uint32_t index_of(const struct disk_write *d) {
    uint32_t i = 0;
    while (writes[i] != d)
        i++;
    return i;
}

/* Of an older write that lies there in part, the newer one's bytes show from now on. */
static void overlay(struct disk_write *older, const struct disk_write *d) {
    uint64_t begin = d->offset > older->offset ? d->offset : older->offset;
    uint64_t end = d->offset + d->bytes, older_end = older->offset + older->bytes;
    end = end < older_end ? end : older_end;
    if (begin < end)
        memcpy(older->data + (begin - older->offset), d->data + (begin - d->offset), end - begin);
}

/* Makes a write safe: what older ones left in its place can no longer show. */
static void keep(uint32_t i) {
    struct disk_write *d = writes[i];
    uint64_t offset = d->offset, end = d->offset + d->bytes;
    memcpy(safe + offset, d->data, d->bytes);
    if (!d->is_short)
        records_safe(d->data, d->bytes, true);
    for (uint32_t k = i; k-- > 0;) {
        if (!writes[k]->is_done)
            continue;
        overlay(writes[k], d);
        if (offset <= writes[k]->offset && writes[k]->offset + writes[k]->bytes <= end)
            drop(k);
    }
    drop(index_of(d));
}

static int trouble(const struct disk_write *d) {
    static const int codes[] = {-EIO, -EAGAIN, -ENOSPC, -EINTR};
    if (is_dead)
        return -EIO;
    uint32_t unit =
        sim.shape.write_align > sim.shape.mem_align ? sim.shape.write_align : sim.shape.mem_align;
    if (!sim.calm && sim_one_of(sim.shape.write_trouble_of))
        return sim_below(2) ? codes[sim_below(4)]
                            : (int)(sim_below((uint32_t)(d->bytes / unit)) * unit);
    return (int)d->bytes;
}

enum ready disk_complete(struct operation *o) {
    struct disk_write *d = o->write;
    if (sim.shape.disk_dies && !sim.calm && !is_dead && sim_one_of(400)) {
        is_dead = sim.store_failed = true;
        sim_log("the disk dies");
    }
    int result = trouble(d);
    bool whole = result == (int)d->bytes;
    bool leaves_nothing = result <= 0 && sim_below(2);
    take_memory(d, result >= 0 ? (uint64_t)result : d->bytes);
    d->is_short = result >= 0 && !whole;
    if (d->is_short)
        records_safe(d->data, d->whole_bytes, false);
    d->is_forsaken = result < 0; /* whatever is there now, nobody vouches for it */
    if (d->is_stable && result > 0 && file == FILE_IS_THERE) /* also what is there of a short one */
        keep(index_of(d));
    else if (leaves_nothing)
        drop(index_of(d));
    sim_post(o->user_data, result, 0, 0);
    return READY_DONE;
}

void disk_flush_submit(struct operation *o) {
    if (o->fd != FD_STORE)
        sim_fail("a flush of something else than the store");
    for (uint32_t i = 0; i < writes_count; i++)
        writes[i]->is_covered = writes[i]->is_done;
    o->not_before_ns = sim.now_ns + latency_ns() * 2;
    sim_wake_at(o->not_before_ns);
}

static void flush_covered(bool is_good) {
    for (uint32_t i = 0; i < writes_count; i++) {
        if (!writes[i]->is_covered)
            continue;
        writes[i]->is_forsaken = writes[i]->is_forsaken || !is_good;
    }
    for (bool again = true; again;) {
        again = false;
        for (uint32_t i = 0; i < writes_count && !again; i++)
            if (writes[i]->is_covered && !writes[i]->is_forsaken) {
                keep(i);
                again = true;
            }
    }
    for (uint32_t i = 0; i < writes_count; i++)
        writes[i]->is_covered = false;
}

enum ready disk_flush_complete(struct operation *o) {
    bool is_good = !is_dead && (sim.calm || !sim_one_of(sim.shape.flush_failure_of));
    sim.store_failed = sim.store_failed || !is_good;
    if (sim.shape.file_goes && !sim.calm && file == FILE_IS_THERE && sim_one_of(8)) {
        file = FILE_DELETED + sim_below(3);
        sim.store_failed = true;
        sim_log("the file is gone: %u", file);
    }
    flush_covered(is_good && file == FILE_IS_THERE);
    sim_post(o->user_data, is_good ? 0 : -EIO, 0, 0);
    return READY_DONE;
}

int sim_fdatasync(int fd) {
    if (fd != FD_STORE)
        sim_fail("fdatasync of descriptor %d", fd);
    for (uint32_t i = 0; i < writes_count; i++)
        writes[i]->is_covered = writes[i]->is_done;
    flush_covered(!is_dead && file == FILE_IS_THERE);
    errno = EIO;
    return is_dead ? -1 : 0;
}

int sim_fstat(int fd, struct stat *s) {
    if (fd != FD_STORE)
        sim_fail("fstat of descriptor %d", fd);
    *s = (struct stat){.st_mode = sim.shape.is_file ? S_IFREG : S_IFBLK,
                       .st_nlink = file != FILE_DELETED};
    s->st_size = !sim.shape.is_file ? 0
                 : file == FILE_CUT ? SEGMENTS_OFFSET_BYTES
                                    : (off_t)store_bytes;
    errno = EIO;
    return file == FILE_UNKNOWN ? -1 : 0;
}

void disk_check_free(const uint8_t *at, uint64_t bytes, const char *what) {
    for (uint32_t i = 0; i < writes_count; i++)
        for (uint32_t k = 0; !writes[i]->is_done && k < writes[i]->iov_count; k++) {
            const uint8_t *base = writes[i]->iov[k].iov_base;
            if (base < at + bytes && at < base + writes[i]->iov[k].iov_len)
                sim_fail("%s gets memory that a write under way reads from", what);
        }
}

bool disk_is_there(void) {
    return file == FILE_IS_THERE && !is_dead;
}

static void take_one(uint64_t offset, uint64_t bytes, FILE *in) {
    struct disk_write *d = calloc(1, sizeof *d);
    uint8_t *data = malloc(bytes + 1);
    if (d == NULL || data == NULL || writes_count == WRITES_MAX ||
        fread(data, 1, bytes, in) != bytes || offset + bytes > store_bytes)
        sim_fail("what Python wrote cannot be read");
    for (uint32_t i = 0; i < writes_count; i++)
        if (!writes[i]->is_done && writes[i]->offset < offset + bytes &&
            offset < writes[i]->offset + writes[i]->bytes)
            sim_fail("Python writes to byte %llu, as the worker does", (unsigned long long)offset);
    *d = (struct disk_write){.offset = offset, .bytes = bytes, .data = data, .is_done = true};
    writes[writes_count++] = d;
    keep(writes_count - 1);
}

void disk_take(const char *path) {
    uint64_t head[3];
    FILE *in = fopen(path, "r");
    if (in == NULL)
        sim_fail("%s cannot be read", path);
    while (fread(head, sizeof head, 1, in) == 1)
        take_one(head[0], head[1], in);
    fclose(in);
}

bool disk_is_quiet(void) {
    for (uint32_t i = 0; i < writes_count; i++)
        if (!writes[i]->is_done)
            return false;
    return true;
}

/* Lays some of a write's units; which, is all up to chance. */
static void tear(const uint8_t *data, uint64_t offset, uint64_t bytes) {
    uint64_t unit = sim_below(2) ? 512 : 4096, count = (bytes + unit - 1) / unit;
    uint32_t kind = sim_below(4);
    uint64_t left = sim_random() % (count + 1);
    for (uint64_t i = 0; i < count; i++) {
        bool is_kept = kind == 0   ? i < left
                       : kind == 1 ? i >= left
                       : kind == 2 ? i != left
                                   : sim_below(2) != 0;
        uint64_t at = i * unit, size = bytes - at < unit ? bytes - at : unit;
        if (is_kept)
            memcpy(image + offset + at, data + at, size);
    }
}

static uint8_t *content(const struct disk_write *d) {
    uint8_t *data = malloc(d->bytes + 1);
    uint64_t at = 0;
    for (uint32_t i = 0; !d->is_done && i < d->iov_count; i++) {
        memcpy(data + at, d->iov[i].iov_base, d->iov[i].iov_len);
        at += d->iov[i].iov_len;
    }
    if (d->is_done)
        memcpy(data, d->data, d->bytes);
    return data;
}

/* Of the writes, those of which something may be left. */
static uint32_t left_count(void) {
    return file == FILE_IS_THERE ? writes_count : 0;
}

void disk_lose_power(void) {
    /* Of 100 writes, how many are kept whole and how many torn; the rest is lost. */
    static const uint8_t fates[][2] = {{100, 0}, {0, 0},   {0, 0},  {50, 0}, {95, 0},
                                       {5, 0},   {30, 40}, {5, 90}, {80, 10}};
    const uint8_t *fate = fates[sim_below(sizeof fates / sizeof *fates)];
    memcpy(image, safe, store_bytes);
    for (uint32_t i = 0; i < left_count(); i++) {
        uint32_t lot = sim_below(100);
        uint8_t *data = content(writes[i]);
        if (lot < fate[0])
            memcpy(image + writes[i]->offset, data, writes[i]->bytes);
        else if (lot < fate[0] + fate[1])
            tear(data, writes[i]->offset, writes[i]->bytes);
        free(data);
    }
    sim_log("power fails: of %u writes %u of 100 are kept, %u torn", writes_count, fate[0],
            fate[1]);
}

/* For the driver: what is safe lies in the image, and what is not, in order, in a file beside it.
 */
void disk_dump(const char *path) {
    FILE *out = fopen(path, "w");
    if (out == NULL)
        sim_fail("%s cannot be written", path);
    memcpy(image, safe, store_bytes);
    for (uint32_t i = 0; i < left_count(); i++) {
        uint64_t head[3] = {writes[i]->offset, writes[i]->bytes, writes[i]->is_done};
        uint8_t *data = content(writes[i]);
        fwrite(head, sizeof head, 1, out);
        fwrite(data, 1, writes[i]->bytes, out);
        free(data);
    }
    fclose(out);
}

void disk_show(void) {
    memcpy(image, safe, store_bytes);
    for (uint32_t i = 0; i < left_count(); i++)
        if (writes[i]->is_done && !writes[i]->is_forsaken)
            memcpy(image + writes[i]->offset, writes[i]->data, writes[i]->bytes);
}

void disk_forget(void) {
    while (writes_count > 0)
        drop(writes_count - 1);
    free(safe);
    munmap(image, store_bytes);
}
