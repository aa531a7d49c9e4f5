/* SPDX-License-Identifier: Apache-2.0
 *
 * What went wrong at a system call, for the one place in Python that words it.
 * Owned by the worker's thread until run() or setup() has returned.
 */
#ifndef INGESTD_BASE_FAULT_H
#define INGESTD_BASE_FAULT_H

#include <stdio.h>
#include <string.h>

struct fault {
    int code; /* errno, positive */
    char call[40];
    char object[88];
};

/* Keeps the first fault and returns -code, so that callers can return it. */
static inline int fault_set(struct fault *f, int code, const char *call, const char *object) {
    if (f->code == 0) {
        f->code = code;
        snprintf(f->call, sizeof f->call, "%s", call);
        snprintf(f->object, sizeof f->object, "%s", object);
    }
    return -code;
}

#endif
