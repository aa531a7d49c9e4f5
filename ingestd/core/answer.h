/* SPDX-License-Identifier: Apache-2.0
 *
 * The last line that a sender gets: a receipt, or why there is none. One JSON
 * object and a newline. Pure.
 */
#ifndef INGESTD_ANSWER_H
#define INGESTD_ANSWER_H

#include <stddef.h>

#include "flow.h"

/* Writes the line, without terminator counted; returns its bytes. store_errno:
 * 0, or why the store failed. */
size_t answer_format(const struct flow *f, int store_errno, char *line, size_t capacity);

#endif
