/* SPDX-License-Identifier: Apache-2.0
 *
 * A store for the core without Python: opened or formatted, its segments handed out. What the
 * daemon would recover is left to it: segments that bear a header of this store are in use.
 */
#ifndef VM_STORE_H
#define VM_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "format/format.h"

struct store {
    int fd;
    struct superblock super;
    uint32_t *free_indexes; /* of segments, in their order, as they were when it was opened */
    uint32_t free_count, free_next;
    uint32_t next_counter; /* lower half of segment_sequence */
};

/* Opens a device as the daemon does; formats it when segment_bytes is not 0, else raises the
 * generation of the store on it. Ends the program with a message when that cannot be. */
void store_open(struct store *s, const char *path, uint64_t segment_bytes);

/* A free segment; false when there is none. */
bool store_take(struct store *s, uint32_t *index, uint64_t *sequence);

#endif
