/* SPDX-License-Identifier: Apache-2.0
 *
 * A slow device: the kernel's dm-delay over another one, made without dmsetup.
 */
#ifndef VM_DELAY_H
#define VM_DELAY_H

#include <stdbool.h>

#define DELAY_PATH_BYTES 32

/* Puts a delay on writes and flushes of a device, and gives the path of the slow one; what a case
 * that failed has left of such is removed. Fails the case when it cannot. */
void delay_create(const char *device, unsigned write_delay_ms, char path[DELAY_PATH_BYTES]);

/* Everything that is sent to it waits until it is resumed. */
void delay_suspend(bool on);

/* Every request fails from now on. */
void delay_break(void);

void delay_remove(void);

#endif
