/* SPDX-License-Identifier: Apache-2.0
 *
 * Devices of the kernel's device mapper, made without dmsetup by its own requests. Each has a name
 * and one target over its whole length. All functions return 0 or -errno.
 */
#ifndef VM_MAPPER_H
#define VM_MAPPER_H

#include <stdbool.h>
#include <stdint.h>

#define MAPPER_PATH_BYTES 32

/* A device without a table yet, and its path. */
int mapper_create(const char *name, char path[MAPPER_PATH_BYTES]);

/* The path of a device that is there. */
int mapper_path(const char *name, char path[MAPPER_PATH_BYTES]);

/* The table that counts from the next time it is resumed; tried again for some seconds while the
 * device that it is to lie on is in use: a program may have ended, and its ring not yet. */
int mapper_load(const char *name, const char *target, uint64_t sectors, const char *parameters);

/* What is sent to a suspended device waits; resuming lets it go by the table that was loaded. */
int mapper_suspend(const char *name, bool on);

/* Sends the target a message, e.g. "mark <word>". */
int mapper_message(const char *name, const char *message);

/* As patient as mapper_load. */
int mapper_remove(const char *name);

/* How many sectors of 512 bytes a device has. */
int mapper_sectors(const char *device, uint64_t *sectors);

#endif
