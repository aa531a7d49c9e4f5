/* SPDX-License-Identifier: Apache-2.0
 *
 * The virtual NIC pair and TCP streams over it: zc0 is on this side, zc1 in the network
 * namespace "peer", which setup.sh has made. Also streams over loopback for device-less cases.
 *
 * A stream's bytes follow from their offset alone, so a receiver can check any piece of one. They
 * repeat after a bit more than 1 MiB, which is no multiple of any payload length used here: a
 * piece in the wrong place is noticed.
 */
#ifndef VM_NET_H
#define VM_NET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define NET_ADDRESS "10.9.0.1"
#define NET_ADDRESS6 "fd09::1"
#define NET_LOOPBACK "127.0.0.1"
#define NET_STEERED_PORT 7001 /* setup.sh steers it to NET_QUEUE; other ports go to queue 0 */
#define NET_UNSTEERED_PORT 7002
#define NET_QUEUE 2u
#define NET_MTU_ETHERNET 1500
#define NET_MTU_PAGE 4148  /* 4096 bytes of payload: 20 IP, 20 TCP, 12 time stamps */
#define NET_MTU_PAGE6 4168 /* the same with 40 bytes of IPv6 */
#define NET_MTU_JUMBO 9000

/* Runs a shell command; fails the case if it fails. */
__attribute__((format(printf, 1, 2))) void net_command(const char *format, ...);

uint32_t net_interface_index(void);
void net_set_mtu(int mtu);
void net_set_sender_tso(bool on);

/* Sets a parameter of the NIC's module. */
void net_set_parameter(const char *name, unsigned value);

/* All settings back to what setup.sh made. */
void net_reset(void);

/* A counter of a queue, e.g. "frags"; and of the steered queue. */
uint64_t net_counter(unsigned queue, const char *name);
uint64_t net_queue_counter(const char *name);

int net_listen(const char *address, uint16_t port);
int net_accept(int listener);

/* A child that sends a stream to `address`: from the peer, or from this side if that is
 * NET_LOOPBACK. Its failure is noticed by net_join. */
pid_t net_send(const char *address, uint16_t port, uint64_t bytes);
void net_join(pid_t sender);

/* True when `data` is the stream's piece at `offset`. */
bool net_stream_matches(const void *data, size_t bytes, uint64_t offset);

#endif
