/* SPDX-License-Identifier: Apache-2.0
 *
 * Which shapes of vectored direct writes a device takes: pwritev, WRITEV and WRITEV_FIXED out of
 * an area that is a zcrx area and a fixed buffer at once, each read back and compared. What must
 * be taken follows from the device's limits alone (device_takes), and all else must be refused.
 *
 * Usage: test_direct_io DEVICE=M,V... (the limits that the kind of device is known to have).
 */
#define _GNU_SOURCE
#include "check.h"
#include "device.h"
#include "zcrx.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define AREA_BYTES (32u << 20)
#define PIECES_MAX 1100
#define DEVICES_MAX 16
#define PAGE(index) ((size_t)(index) * ZCRX_PAGE_BYTES)

/* A shape: `count` pieces of `bytes` each, `stride` apart, the first at `offset`, plus padding
 * that fills the write up to a multiple of `pad_to` bytes. */
struct write_shape {
    const char *name;
    int count;
    size_t offset, stride, bytes, pad_to;
};

static const struct write_shape shapes[] = {
    {"a page", 1, 0, PAGE(1), 4096, 0},
    {"3 pages apart", 3, 0, PAGE(2), 4096, 0},
    {"1000 pages apart", 1000, PAGE(1), PAGE(2), 4096, 0},
    {"3 x 1448 padded to 512", 3, 0, PAGE(1), 1448, 512},
    {"3 x 1448 padded to 4096", 3, 0, PAGE(1), 1448, 4096},
    {"32 x 1448 padded to 4096", 32, 0, PAGE(1), 1448, 4096},
    {"1000 x 1448 padded to 4096", 1000, 0, PAGE(1), 1448, 4096},
    {"3 x 1448 without padding", 3, 0, PAGE(1), 1448, 0},
    {"7 x 4068 padded to 4096", 7, 0, PAGE(1), 4068, 4096},
    {"odd lengths padded to 4096", 3, 0, PAGE(1), 1449, 4096},
    {"a page at +1", 1, 1, PAGE(1), 4096, 0},
    {"a page at +2", 1, 2, PAGE(1), 4096, 0},
    {"a page at +4", 1, 4, PAGE(1), 4096, 0},
    {"a page at +512", 1, 512, PAGE(1), 4096, 0},
    {"4 x 1024 at +512", 4, 512, PAGE(2), 1024, 0},
    {"8 x 512 at +1024", 8, 1024, PAGE(2), 512, 0},
    {"64 KiB chunks", 4, 0, 2 * 65536, 65536, 0},
    {"65160 of 64 KiB chunks padded", 4, 0, 2 * 65536, 65160, 4096},
};
#define SHAPES_COUNT ((int)(sizeof(shapes) / sizeof(shapes[0])))

struct bench {
    struct ring ring;
    struct zcrx zcrx;
    struct device device;
    struct iovec pieces[PIECES_MAX];
    int count;
};

struct subject {
    char path[64];
    uint32_t memory_align_bytes, virtual_boundary;
    bool lies; /* takes what it must not, and stores something else */
};

static void open_bench(struct bench *bench, const struct subject *subject) {
    struct zcrx_options options = {
        .area_bytes = AREA_BYTES, .padding_bytes = 65536, .refill_entries = 64};

    CHECK_ERROR(ring_open(&bench->ring, 16, 64, RING_FLAGS_ZCRX), 0, "opening a ring");
    zcrx_register(&bench->zcrx, &bench->ring, &options);
    struct iovec whole = {bench->zcrx.area, AREA_BYTES + options.padding_bytes};
    CHECK_ERROR(ring_register(&bench->ring, IORING_REGISTER_BUFFERS, &whole, 1), 0,
                "the area as a fixed buffer");
    device_open(&bench->device, subject->path);
}

static void lay_out(struct bench *bench, const struct write_shape *shape) {
    size_t total = shape->bytes * (size_t)shape->count;

    bench->count = shape->count;
    for (int index = 0; index < shape->count; index++)
        bench->pieces[index] = (struct iovec){
            bench->zcrx.area + shape->offset + shape->stride * (size_t)index, shape->bytes};
    if (shape->pad_to && total % shape->pad_to)
        bench->pieces[bench->count++] =
            (struct iovec){bench->zcrx.area + AREA_BYTES, shape->pad_to - total % shape->pad_to};
}

/* Different bytes for every attempt, so that what an earlier one stored is not taken for it. */
static void scramble(struct bench *bench) {
    static uint64_t state = 88172645463325252u;

    for (int index = 0; index < bench->count; index++) {
        unsigned char *bytes = bench->pieces[index].iov_base;
        for (size_t at = 0; at < bench->pieces[index].iov_len; at++) {
            if (at % 64 == 0) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
            }
            bytes[at] = (unsigned char)(state >> at % 57);
        }
    }
}

static long write_by_ring(struct bench *bench, uint8_t operation) {
    struct io_uring_sqe *sqe = ring_sqe(&bench->ring);

    sqe->opcode = operation;
    sqe->fd = bench->device.fd;
    sqe->addr = (uintptr_t)bench->pieces;
    sqe->len = (uint32_t)bench->count;
    return ring_wait(&bench->ring).result;
}

static long write_by_call(struct bench *bench) {
    ssize_t result = pwritev(bench->device.fd, bench->pieces, bench->count, 0);
    return result < 0 ? -errno : (long)result;
}

static bool stored(struct bench *bench) {
    uint64_t total = device_total_bytes(bench->pieces, bench->count);
    char *data = device_read(&bench->device, 0, total), *found = data;
    bool same = true;

    for (int index = 0; index < bench->count && same; index++) {
        same = memcmp(found, bench->pieces[index].iov_base, bench->pieces[index].iov_len) == 0;
        found += bench->pieces[index].iov_len;
    }
    free(data);
    return same;
}

/* Writes the pieces in one of three ways; says what came of it in a word. */
static const char *attempt(struct bench *bench, int way) {
    scramble(bench);
    long result = way == 0   ? write_by_call(bench)
                  : way == 1 ? write_by_ring(bench, IORING_OP_WRITEV)
                             : write_by_ring(bench, IORING_OP_WRITEV_FIXED);
    if (result < 0)
        return check_error_name(result);
    if ((uint64_t)result != device_total_bytes(bench->pieces, bench->count))
        return "a short write";
    return stored(bench) ? "stored" : "wrong bytes";
}

/* EINVAL as a rule. Kernel 7.2 finds out about a write of very many pieces only when it has begun
 * to split it, and then says EIO. */
static bool refused(const char *outcome) {
    return strcmp(outcome, "EINVAL") == 0 || strcmp(outcome, "EIO") == 0;
}

static void run_shapes(const void *argument) {
    static const char *const ways[] = {"pwritev", "WRITEV", "WRITEV_FIXED"};
    const struct subject *subject = argument;
    struct bench *bench = calloc(1, sizeof(*bench));
    int lies = 0;

    CHECK(bench, "no memory");
    open_bench(bench, subject);
    CHECK(bench->device.memory_align_bytes == subject->memory_align_bytes,
          "%s wants memory aligned to %u", subject->path, bench->device.memory_align_bytes);
    CHECK(bench->device.virtual_boundary == subject->virtual_boundary,
          "%s has a virtual boundary of %u", subject->path, bench->device.virtual_boundary);
    for (int shape = 0; shape < SHAPES_COUNT; shape++) {
        lay_out(bench, &shapes[shape]);
        bool taken = device_takes(&bench->device, bench->pieces, bench->count);
        for (int way = 0; way < 3; way++) {
            const char *outcome = attempt(bench, way);
            bool right = taken ? strcmp(outcome, "stored") == 0 : refused(outcome);
            lies += strcmp(outcome, "wrong bytes") == 0;
            CHECK(right || (subject->lies && !taken), "%s by %s: %s", shapes[shape].name, ways[way],
                  outcome);
        }
    }
    /* A device known to lie that has stopped to do so no longer serves to test a probe. */
    CHECK((lies > 0) == subject->lies, "%d shapes were stored wrong without an error", lies);
}

int main(int count, char **arguments) {
    static struct subject subjects[DEVICES_MAX];
    static struct check_case cases[DEVICES_MAX];
    static char *names[DEVICES_MAX];
    int devices = count - 1;

    CHECK(devices > 0 && devices <= DEVICES_MAX, "usage: test_direct_io DEVICE=M,V[,lies]...");
    for (int index = 0; index < devices; index++) {
        struct subject *subject = &subjects[index];
        int found = sscanf(arguments[index + 1], "%63[^=]=%u,%u", subject->path,
                           &subject->memory_align_bytes, &subject->virtual_boundary);
        CHECK(found == 3, "%s is not DEVICE=M,V", arguments[index + 1]);
        subject->lies = strstr(arguments[index + 1], ",lies") != NULL;
        CHECK_CALL(asprintf(&names[index], "%d shapes on %s", SHAPES_COUNT, subject->path));
        cases[index] = (struct check_case){names[index], run_shapes, subject};
    }
    return check_run("direct-io", cases, (size_t)devices);
}
