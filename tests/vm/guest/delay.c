/* SPDX-License-Identifier: Apache-2.0
 *
 * dm-delay on the device mapper: see delay.h. One slow device at a time.
 */
#include "delay.h"
#include "check.h"
#include "mapper.h"

#include <stdint.h>
#include <stdio.h>

#define NAME "slow"
#define PARAMETERS_BYTES 256

_Static_assert(DELAY_PATH_BYTES == MAPPER_PATH_BYTES, "paths of mapped devices");

static uint64_t sectors;

/* Requests that wait in a suspended device are released, or its users would never end. */
static void remove_leftovers(void) {
    if (mapper_suspend(NAME, false) == 0)
        delay_remove();
}

void delay_create(const char *device, unsigned write_delay_ms, char path[DELAY_PATH_BYTES]) {
    char parameters[PARAMETERS_BYTES];

    remove_leftovers();
    CHECK_ERROR(mapper_create(NAME, path), 0, "creating the slow device");
    CHECK_ERROR(mapper_sectors(device, &sectors), 0, device);
    /* Device, offset, delay: of reads, then of writes, which flushes go with. */
    snprintf(parameters, sizeof(parameters), "%s 0 0 %s 0 %u", device, device, write_delay_ms);
    CHECK_ERROR(mapper_load(NAME, "delay", sectors, parameters), 0, "loading the slow device");
    delay_suspend(false);
}

void delay_break(void) {
    delay_suspend(true);
    CHECK_ERROR(mapper_load(NAME, "error", sectors, ""), 0, "breaking the slow device");
    delay_suspend(false);
}

void delay_suspend(bool on) {
    CHECK_ERROR(mapper_suspend(NAME, on), 0, on ? "suspending" : "resuming");
}

void delay_remove(void) {
    CHECK_ERROR(mapper_remove(NAME), 0, "removing the slow device");
}
