/* SPDX-License-Identifier: Apache-2.0
 *
 * What is seen of the core from outside, and what of its surroundings is made worse, by functions
 * that the linker puts between its parts (--wrap): the core itself is the production code.
 *
 * Seen: every fragment that the kernel delivers, as it lies in the area. From those shapes and the
 * device's profile follows, by the rules at the head of plan.h and nothing else of the planner,
 * how many bytes have to be copied and why. The counters of the core are compared with that.
 */
#ifndef VM_OBSERVE_H
#define VM_OBSERVE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* What is to be made worse, to be set before any worker is made. 'C': the completion queue has so
 * many entries, the submission queue half of it; 'x': no slot is ever free for the relief valve.
 * False: there is no such option. */
bool observe_option(int option, uint64_t value);

/* Prints the sum over all workers as name=value:
 *   seen_fragments, seen_bytes, seen_shortest, seen_longest, seen_unaligned (begin or end not a
 *   multiple of M), seen_lent_max (most chunks lent at once), seen_overflows (of those fragments,
 *   how many came while the completion queue had no room for more),
 *   due_head, due_tail, due_boundary, due_small: bytes to be copied for that reason,
 *   due_small_maybe: bytes that are copied or not, as a batch ends before them or behind. */
void observe_print(FILE *out);

#endif
