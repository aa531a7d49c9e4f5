/* SPDX-License-Identifier: Apache-2.0
 *
 * Progress of connections: takes the engines' reports, and retries those that found no room in a
 * batch.
 * Owned by the worker's thread.
 */
#ifndef INGESTD_CONNECTION_PROGRESS_H
#define INGESTD_CONNECTION_PROGRESS_H

struct connections;

/* Hands the engines' reports to the protocols. To be called after each call of an engine. */
void connection_take_reports(struct connections *c);
/* Once a turn: connections that found no room try again in the order in which they came. One that
 * fails again keeps its place. */
void connection_serve_blocked(struct connections *c);

#endif
