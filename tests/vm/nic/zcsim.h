/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * zcsim: a pair of linked virtual NICs for tests of zero-copy receive.
 *
 * What one NIC sends the other receives. The receiving side does what hardware with header
 * split does: headers go into the linear part of a new skb, TCP payload is "DMAed" (copied to
 * the buffer's DMA address) into buffers of the rx queue's page pool. A queue whose page pool
 * has a memory provider (io_uring zcrx, devmem) thus delivers real net_iov fragments.
 *
 * Files: zcsim_main.c (devices, transmit), zcsim_rx.c (receive), zcsim_queue.c (rx queue memory,
 * as the network core's queue management wants it), zcsim_ethtool.c (rings, steering rules, RSS,
 * statistics).
 *
 * Limits: direct DMA mapping only (no IOMMU); check sums are neither made nor looked at; the RSS
 * hash is the kernel's own, not Toeplitz.
 */
#ifndef ZCSIM_H
#define ZCSIM_H

#include <linux/ethtool.h>
#include <linux/ipv6.h>
#include <linux/netdevice.h>
#include <linux/skbuff.h>
#include <linux/spinlock.h>
#include <net/netdev_queues.h>
#include <net/page_pool/helpers.h>

#define ZC_DRIVER	"zcsim"
#define ZC_QUEUES_MAX	64
#define ZC_RULES_MAX	64
#define ZC_CONTEXTS_MAX	8	/* RSS contexts; number 0 is the device's own */
#define ZC_INDIR_SIZE	128
#define ZC_KEY_SIZE	40
#define ZC_HDS_THRESH_MAX 1024
#define ZC_BUFFER_MAX	SZ_2M

/* Module parameters; all but the first two may be changed at any time. */
extern unsigned int zc_queues;
extern unsigned int zc_posted;
extern unsigned int zc_backlog;
extern bool zc_pack;
extern unsigned int zc_pack_align;
extern unsigned int zc_buffer_offset;
extern unsigned int zc_drop_every;
extern unsigned int zc_linear_bytes;
extern bool zc_gro;

/*
 * One rx queue. Everything but @backlog belongs to the queue's NAPI poll while the queue runs,
 * and to the caller of the queue management operations while it does not.
 */
struct zc_queue {
	struct napi_struct	napi;
	struct sk_buff_head	backlog;	/* "on the wire": sent by the peer, not yet received */
	struct page_pool	*pool;
	u32			buffer_size;

	/* The descriptor ring: buffers the NIC may fill, @posted[head..tail) modulo its size. */
	netmem_ref		*posted;
	unsigned int		head, tail;

	netmem_ref		current_buffer;
	u32			current_offset;

	unsigned int		drop_counter;
	u64			packets, bytes, frags, niov_frags, alloc_fail, drops;
};

/* What the network core hands around when it stops one memory of a queue and starts another. */
struct zc_queue_memory {
	struct page_pool	*pool;
	u32			buffer_size;
};

struct zc_device {
	struct net_device	*dev, *peer;
	struct zc_queue		*queues;

	/* As ethtool last set them; read by the receive path without a lock. */
	bool			header_split;
	u32			header_split_thresh;

	spinlock_t		rules_lock;	/* protects all below, against the peer's transmit */
	struct ethtool_rx_flow_spec rules[ZC_RULES_MAX];
	u32			rule_contexts[ZC_RULES_MAX];
	DECLARE_BITMAP(rules_used, ZC_RULES_MAX);
	u8			indir[ZC_CONTEXTS_MAX][ZC_INDIR_SIZE];
	u8			key[ZC_KEY_SIZE];
};

/* The header of a packet as far as splitting and steering look at it. */
struct zc_flow {
	bool			is_tcp4, is_tcp6;
	unsigned int		header_bytes;	/* Ethernet + IP + TCP */
	__be16			source_port, dest_port;
	__be32			source4, dest4;
	struct in6_addr		source6, dest6;
};

/* zcsim_rx.c */
void zc_dissect(const struct sk_buff *skb, struct zc_flow *flow);
int zc_poll(struct napi_struct *napi, int budget);
void zc_drain(struct zc_queue *queue);

/* zcsim_queue.c */
extern const struct netdev_queue_mgmt_ops zc_queue_ops;
int zc_open(struct net_device *dev);
int zc_stop(struct net_device *dev);

/* zcsim_ethtool.c */
extern const struct ethtool_ops zc_ethtool_ops;
extern const struct netdev_stat_ops zc_stat_ops;
unsigned int zc_steer(struct zc_device *zc, struct sk_buff *skb);
void zc_rules_flush(struct zc_device *zc);
void zc_rss_reset(struct zc_device *zc);

#endif
