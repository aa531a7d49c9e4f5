/* SPDX-License-Identifier: Apache-2.0
 *
 * How connections go on: what engines report of them, and who waits for room in a batch.
 * Owned by the worker's thread.
 */
#ifndef INGESTD_CONNECTION_PROGRESS_H
#define INGESTD_CONNECTION_PROGRESS_H

struct connections;

/* Hands what engines have reported to the protocols. Behind whatever calls an engine. */
void connection_take_reports(struct connections *c);
/* Once a turn: flows that found no room try again in the order in which they came. Who fails
 * again keeps its place. */
void connection_serve_blocked(struct connections *c);

#endif
