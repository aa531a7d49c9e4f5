// SPDX-License-Identifier: GPL-2.0-only
/*
 * zcsim, the receive path: takes a packet that the peer sent, builds from it the skb that
 * hardware with header split would have made, hands it to the stack.
 *
 * Runs in the NAPI poll of one queue; no locks, since a queue belongs to its poll.
 */
#include <linux/dma-mapping.h>
#include <linux/etherdevice.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <net/busy_poll.h>
#include <net/ip.h>

#include "zcsim.h"

static void zc_fill(struct zc_queue *queue)
{
	while (queue->tail - queue->head < zc_posted) {
		netmem_ref buffer = page_pool_alloc_netmems(queue->pool, GFP_ATOMIC | __GFP_NOWARN);

		if (!buffer) {
			queue->alloc_fail++;
			break;
		}
		queue->posted[queue->tail++ % zc_posted] = buffer;
	}
}

static void zc_put_current(struct zc_queue *queue, bool direct)
{
	if (queue->current_buffer)
		page_pool_put_full_netmem(queue->pool, queue->current_buffer, direct);
	queue->current_buffer = 0;
}

/* Give back all buffers of a queue that has been stopped. */
void zc_drain(struct zc_queue *queue)
{
	zc_put_current(queue, false);
	while (queue->head != queue->tail)
		page_pool_put_full_netmem(queue->pool, queue->posted[queue->head++ % zc_posted],
					  false);
}

/* The buffer that the next payload bytes go to, with room in it; false when there is none. */
static bool zc_have_buffer(struct zc_queue *queue)
{
	if (queue->current_buffer && queue->current_offset >= queue->buffer_size)
		zc_put_current(queue, true);
	if (queue->current_buffer)
		return true;
	if (queue->head == queue->tail)
		zc_fill(queue);
	if (queue->head == queue->tail)
		return false;
	queue->current_buffer = queue->posted[queue->head++ % zc_posted];
	queue->current_offset = min(zc_buffer_offset, queue->buffer_size - SMP_CACHE_BYTES);
	return true;
}

static void zc_dissect_tcp(const struct sk_buff *skb, unsigned int offset, struct zc_flow *flow)
{
	const struct tcphdr *tcp;
	struct tcphdr copy;

	tcp = skb_header_pointer(skb, offset, sizeof(copy), &copy);
	if (!tcp) {
		flow->is_tcp4 = false;
		flow->is_tcp6 = false;
		return;
	}
	flow->source_port = tcp->source;
	flow->dest_port = tcp->dest;
	flow->header_bytes = offset + tcp->doff * 4;
}

/* Look at the headers; neither is_tcp4 nor is_tcp6 is set when it is not whole TCP. */
void zc_dissect(const struct sk_buff *skb, struct zc_flow *flow)
{
	const struct ethhdr *eth;
	struct ethhdr eth_copy;

	flow->is_tcp4 = false;
	flow->is_tcp6 = false;
	eth = skb_header_pointer(skb, 0, sizeof(eth_copy), &eth_copy);
	if (!eth)
		return;
	if (eth->h_proto == htons(ETH_P_IP)) {
		struct iphdr copy;
		const struct iphdr *ip = skb_header_pointer(skb, ETH_HLEN, sizeof(copy), &copy);

		if (!ip || ip->protocol != IPPROTO_TCP || ip_is_fragment(ip))
			return;
		flow->is_tcp4 = true;
		flow->source4 = ip->saddr;
		flow->dest4 = ip->daddr;
		zc_dissect_tcp(skb, ETH_HLEN + ip->ihl * 4, flow);
	} else if (eth->h_proto == htons(ETH_P_IPV6)) {
		struct ipv6hdr copy;
		const struct ipv6hdr *ip = skb_header_pointer(skb, ETH_HLEN, sizeof(copy), &copy);

		if (!ip || ip->nexthdr != IPPROTO_TCP)
			return;
		flow->is_tcp6 = true;
		flow->source6 = ip->saddr;
		flow->dest6 = ip->daddr;
		zc_dissect_tcp(skb, ETH_HLEN + sizeof(*ip), flow);
	}
}

/* How many bytes of a packet stay out of the buffers, in the linear part of the skb. */
static unsigned int zc_linear_length(struct zc_device *zc, const struct sk_buff *skb)
{
	struct zc_flow flow;

	zc_dissect(skb, &flow);
	if (!flow.is_tcp4 && !flow.is_tcp6)
		return skb->len;
	if (flow.header_bytes >= skb->len || !READ_ONCE(zc->header_split))
		return skb->len;
	if (skb->len - flow.header_bytes <= READ_ONCE(zc->header_split_thresh))
		return skb->len;
	return min(flow.header_bytes + zc_linear_bytes, skb->len);
}

/* Put bytes [offset, skb->len) into buffers and hang those to @received. */
static bool zc_receive_payload(struct zc_queue *queue, const struct sk_buff *skb,
			       struct sk_buff *received, unsigned int offset)
{
	unsigned int left = skb->len - offset, index = 0, length;
	unsigned int align = READ_ONCE(zc_pack_align);
	void *buffer;

	/* Without packing every packet starts in a buffer of its own. */
	if (!zc_pack)
		zc_put_current(queue, true);
	while (left) {
		if (index == MAX_SKB_FRAGS || !zc_have_buffer(queue))
			return false;
		length = min(left, queue->buffer_size - queue->current_offset);
		buffer = phys_to_virt(page_pool_get_dma_addr_netmem(queue->current_buffer));
		if (skb_copy_bits(skb, offset, buffer + queue->current_offset, length))
			return false;
		page_pool_ref_netmem(queue->current_buffer);
		skb_add_rx_frag_netmem(received, index++, queue->current_buffer,
				       queue->current_offset, length,
				       zc_pack ? ALIGN(length, align) : queue->buffer_size);
		queue->frags++;
		queue->niov_frags += netmem_is_net_iov(queue->current_buffer);
		queue->current_offset = ALIGN(queue->current_offset + length, align);
		offset += length;
		left -= length;
	}
	if (!zc_pack)
		zc_put_current(queue, true);
	return true;
}

static struct sk_buff *zc_receive(struct zc_queue *queue, const struct sk_buff *skb)
{
	unsigned int linear = zc_linear_length(netdev_priv(queue->napi.dev), skb);
	struct sk_buff *received = napi_alloc_skb(&queue->napi, linear);

	if (!received)
		goto drop;
	if (skb_copy_bits(skb, 0, skb_put(received, linear), linear))
		goto drop;
	skb_mark_for_recycle(received);
	if (linear < skb->len) {
		if (zc_drop_every && ++queue->drop_counter % zc_drop_every == 0)
			goto drop;
		if (!zc_receive_payload(queue, skb, received, linear))
			goto drop;
	}
	/* The sender has segmentation offload on: deliver the burst as hardware GRO would. */
	if (skb_is_gso(skb)) {
		skb_shinfo(received)->gso_size = skb_shinfo(skb)->gso_size;
		skb_shinfo(received)->gso_segs = skb_shinfo(skb)->gso_segs;
		skb_shinfo(received)->gso_type = skb_shinfo(skb)->gso_type;
	}
	received->ip_summed = CHECKSUM_UNNECESSARY;
	queue->packets++;
	queue->bytes += skb->len;
	return received;
drop:
	queue->drops++;
	kfree_skb(received);
	return NULL;
}

static void zc_deliver(struct zc_queue *queue, struct sk_buff *skb)
{
	struct net_device *dev = queue->napi.dev;
	struct zc_device *zc = netdev_priv(dev);

	dev_sw_netstats_rx_add(dev, skb->len);
	skb_record_rx_queue(skb, queue - zc->queues);
	/* Sockets learn from this mark which queue they are on (SO_INCOMING_NAPI_ID). */
	skb_mark_napi_id(skb, &queue->napi);
	skb->protocol = eth_type_trans(skb, dev);
	if (zc_gro && !skb_is_gso(skb))
		napi_gro_receive(&queue->napi, skb);
	else
		netif_receive_skb(skb);
}

int zc_poll(struct napi_struct *napi, int budget)
{
	struct zc_queue *queue = container_of(napi, struct zc_queue, napi);
	struct sk_buff *skb, *received;
	int done = 0;

	zc_fill(queue);
	while (done < budget && (skb = skb_dequeue(&queue->backlog))) {
		received = zc_receive(queue, skb);
		dev_consume_skb_any(skb);
		done++;
		if (received)
			zc_deliver(queue, received);
	}
	/* A packet that came between the last look and the completion has not scheduled us. */
	if (done < budget && napi_complete_done(napi, done) && !skb_queue_empty(&queue->backlog))
		napi_schedule(napi);
	return done;
}
