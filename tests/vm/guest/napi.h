/* SPDX-License-Identifier: Apache-2.0
 *
 * Which NAPI instance serves an rx queue, as the kernel's netdev family reports it: what a
 * connection's SO_INCOMING_NAPI_ID is compared with.
 */
#ifndef VM_NAPI_H
#define VM_NAPI_H

#include <stdint.h>

/* The NAPI id of a rx queue; 0 when the driver does not say. Ends the program with a message when
 * the kernel cannot be asked. */
uint32_t napi_of_queue(uint32_t interface_index, uint32_t queue);

#endif
