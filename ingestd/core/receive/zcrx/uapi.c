/* SPDX-License-Identifier: Apache-2.0
 *
 * The ABI of uapi.h compared with the kernel's own header, where the system has it.
 *
 * Compiled to nothing. A file of its own, without liburing: its newer header has the same
 * names, and both cannot be included at once.
 */
#include "receive/zcrx/uapi.h"

#if defined(__has_include)
#if __has_include(<linux/io_uring/zcrx.h>)
#include <linux/io_uring/zcrx.h>
static_assert(sizeof(struct io_uring_zcrx_rqe) == sizeof(struct abi_zcrx_refill_entry), "kernel");
static_assert(sizeof(struct io_uring_zcrx_area_reg) == sizeof(struct abi_zcrx_area), "kernel");
static_assert(sizeof(struct io_uring_zcrx_ifq_reg) == sizeof(struct abi_zcrx_ifq), "kernel");
#endif
#endif
