// SPDX-License-Identifier: GPL-2.0-only
/*
 * zcsim, what ethtool sees: rings with header split, steering rules, RSS with contexts, channels,
 * statistics. Steering itself (zc_steer) is here too, beside the tables it reads.
 *
 * The tables are written under the device's instance lock and read by the peer's transmit path,
 * so both sides take rules_lock.
 */
#include <linux/etherdevice.h>
#include <linux/jhash.h>
#include <net/ipv6.h>

#include "zcsim.h"

static bool zc_rule_matches(const struct ethtool_rx_flow_spec *rule, const struct zc_flow *flow)
{
	u32 type = rule->flow_type & ~FLOW_RSS;

	if (type == TCP_V4_FLOW && flow->is_tcp4) {
		const struct ethtool_tcpip4_spec *want = &rule->h_u.tcp_ip4_spec;
		const struct ethtool_tcpip4_spec *mask = &rule->m_u.tcp_ip4_spec;

		return !((flow->source_port ^ want->psrc) & mask->psrc) &&
		       !((flow->dest_port ^ want->pdst) & mask->pdst) &&
		       !((flow->source4 ^ want->ip4src) & mask->ip4src) &&
		       !((flow->dest4 ^ want->ip4dst) & mask->ip4dst);
	}
	if (type == TCP_V6_FLOW && flow->is_tcp6) {
		const struct ethtool_tcpip6_spec *want = &rule->h_u.tcp_ip6_spec;
		const struct ethtool_tcpip6_spec *mask = &rule->m_u.tcp_ip6_spec;

		return !((flow->source_port ^ want->psrc) & mask->psrc) &&
		       !((flow->dest_port ^ want->pdst) & mask->pdst) &&
		       !ipv6_masked_addr_cmp(&flow->source6, (const void *)mask->ip6src,
					     (const void *)want->ip6src) &&
		       !ipv6_masked_addr_cmp(&flow->dest6, (const void *)mask->ip6dst,
					     (const void *)want->ip6dst);
	}
	return false;
}

/*
 * Of addresses and ports, as a card's hash is: a connection keeps its queue. The packet's own hash
 * would not do, as it is the sender's socket's, which Linux draws anew at each retransmission
 * time-out (net.core.txrehash).
 */
static u32 zc_hash(struct sk_buff *skb, const struct zc_flow *flow)
{
	u32 ports = (__force u32)flow->source_port << 16 | (__force u32)flow->dest_port;

	if (flow->is_tcp4)
		return jhash_3words((__force u32)flow->source4, (__force u32)flow->dest4, ports, 0);
	if (flow->is_tcp6)
		return jhash_3words(ipv6_addr_hash(&flow->source6), ipv6_addr_hash(&flow->dest6),
				    ports, 0);
	return skb_get_hash(skb);
}

/* The rx queue a packet goes to: by the first rule that matches, else by RSS. */
unsigned int zc_steer(struct zc_device *zc, struct sk_buff *skb)
{
	unsigned int queue, rule, slot;
	struct zc_flow flow;

	zc_dissect(skb, &flow);
	slot = zc_hash(skb, &flow) % ZC_INDIR_SIZE;
	spin_lock(&zc->rules_lock);
	queue = zc->indir[0][slot];
	for_each_set_bit(rule, zc->rules_used, ZC_RULES_MAX) {
		if (!zc_rule_matches(&zc->rules[rule], &flow))
			continue;
		queue = zc->rules[rule].ring_cookie;
		if (zc->rules[rule].flow_type & FLOW_RSS)
			queue = zc->indir[zc->rule_contexts[rule]][slot];
		break;
	}
	spin_unlock(&zc->rules_lock);
	return queue;
}

void zc_rules_flush(struct zc_device *zc)
{
	spin_lock_bh(&zc->rules_lock);
	bitmap_zero(zc->rules_used, ZC_RULES_MAX);
	spin_unlock_bh(&zc->rules_lock);
}

/* The state after power-on: unsteered traffic is spread over all queues. */
void zc_rss_reset(struct zc_device *zc)
{
	unsigned int slot;

	for (slot = 0; slot < ZC_INDIR_SIZE; slot++)
		zc->indir[0][slot] = ethtool_rxfh_indir_default(slot, zc_queues);
	netdev_rss_key_fill(zc->key, sizeof(zc->key));
}

static void zc_get_ringparam(struct net_device *dev, struct ethtool_ringparam *ring,
			     struct kernel_ethtool_ringparam *kernel_ring,
			     struct netlink_ext_ack *extack)
{
	struct zc_device *zc = netdev_priv(dev);

	ring->rx_max_pending = zc_posted;
	ring->rx_pending = zc_posted;
	ring->tx_max_pending = zc_backlog;
	ring->tx_pending = zc_backlog;
	kernel_ring->tcp_data_split = zc->header_split ? ETHTOOL_TCP_DATA_SPLIT_ENABLED :
							 ETHTOOL_TCP_DATA_SPLIT_DISABLED;
	kernel_ring->hds_thresh = zc->header_split_thresh;
	kernel_ring->hds_thresh_max = ZC_HDS_THRESH_MAX;
}

static int zc_set_ringparam(struct net_device *dev, struct ethtool_ringparam *ring,
			    struct kernel_ethtool_ringparam *kernel_ring,
			    struct netlink_ext_ack *extack)
{
	struct zc_device *zc = netdev_priv(dev);

	if (ring->rx_pending != zc_posted || ring->tx_pending != zc_backlog) {
		NL_SET_ERR_MSG(extack, "ring sizes are module parameters");
		return -EOPNOTSUPP;
	}
	/* "unknown" asks for the default, and the default of this NIC is on. */
	WRITE_ONCE(zc->header_split,
		   kernel_ring->tcp_data_split != ETHTOOL_TCP_DATA_SPLIT_DISABLED);
	WRITE_ONCE(zc->header_split_thresh, kernel_ring->hds_thresh);
	return 0;
}

static void zc_get_channels(struct net_device *dev, struct ethtool_channels *channels)
{
	channels->max_combined = zc_queues;
	channels->combined_count = zc_queues;
}

static u32 zc_get_rx_ring_count(struct net_device *dev)
{
	return zc_queues;
}

static int zc_get_rule(struct zc_device *zc, struct ethtool_rxnfc *command)
{
	u32 location = command->fs.location;

	if (location >= ZC_RULES_MAX || !test_bit(location, zc->rules_used))
		return -ENOENT;
	command->fs = zc->rules[location];
	command->rss_context = zc->rule_contexts[location];
	return 0;
}

static int zc_list_rules(struct zc_device *zc, struct ethtool_rxnfc *command, u32 *locations)
{
	unsigned int rule, count = 0;

	for_each_set_bit(rule, zc->rules_used, ZC_RULES_MAX) {
		if (count == command->rule_cnt)
			return -EMSGSIZE;
		locations[count++] = rule;
	}
	command->rule_cnt = count;
	command->data = ZC_RULES_MAX;
	return 0;
}

static int zc_get_rxnfc(struct net_device *dev, struct ethtool_rxnfc *command, u32 *locations)
{
	struct zc_device *zc = netdev_priv(dev);

	switch (command->cmd) {
	case ETHTOOL_GRXCLSRLCNT:
		command->rule_cnt = bitmap_weight(zc->rules_used, ZC_RULES_MAX);
		command->data = ZC_RULES_MAX | RX_CLS_LOC_SPECIAL;
		return 0;
	case ETHTOOL_GRXCLSRULE:
		return zc_get_rule(zc, command);
	case ETHTOOL_GRXCLSRLALL:
		return zc_list_rules(zc, command, locations);
	default:
		return -EOPNOTSUPP;
	}
}

/* Only what zc_rule_matches looks at may be asked for. */
static int zc_check_rule(struct net_device *dev, const struct ethtool_rxnfc *command)
{
	const struct ethtool_rx_flow_spec *rule = &command->fs;

	if (!(dev->features & NETIF_F_NTUPLE))
		return -EOPNOTSUPP;
	switch (rule->flow_type & ~FLOW_RSS) {
	case TCP_V4_FLOW:
		if (rule->m_u.tcp_ip4_spec.tos)
			return -EOPNOTSUPP;
		break;
	case TCP_V6_FLOW:
		if (rule->m_u.tcp_ip6_spec.tclass)
			return -EOPNOTSUPP;
		break;
	default:
		return -EOPNOTSUPP;
	}
	if (rule->flow_type & FLOW_RSS) {
		if (rule->ring_cookie || command->rss_context >= ZC_CONTEXTS_MAX)
			return -EINVAL;
		return 0;
	}
	return rule->ring_cookie < zc_queues ? 0 : -EINVAL;
}

static int zc_insert_rule(struct net_device *dev, struct ethtool_rxnfc *command)
{
	struct zc_device *zc = netdev_priv(dev);
	u32 location = command->fs.location;
	int err = zc_check_rule(dev, command);

	if (err)
		return err;
	if (location & RX_CLS_LOC_SPECIAL)
		location = find_first_zero_bit(zc->rules_used, ZC_RULES_MAX);
	if (location >= ZC_RULES_MAX)
		return -ENOSPC;
	command->fs.location = location;
	spin_lock_bh(&zc->rules_lock);
	zc->rules[location] = command->fs;
	zc->rule_contexts[location] =
		command->fs.flow_type & FLOW_RSS ? command->rss_context : 0;
	__set_bit(location, zc->rules_used);
	spin_unlock_bh(&zc->rules_lock);
	return 0;
}

static int zc_delete_rule(struct zc_device *zc, u32 location)
{
	if (location >= ZC_RULES_MAX || !test_bit(location, zc->rules_used))
		return -ENOENT;
	spin_lock_bh(&zc->rules_lock);
	__clear_bit(location, zc->rules_used);
	spin_unlock_bh(&zc->rules_lock);
	return 0;
}

static int zc_set_rxnfc(struct net_device *dev, struct ethtool_rxnfc *command)
{
	switch (command->cmd) {
	case ETHTOOL_SRXCLSRLINS:
		return zc_insert_rule(dev, command);
	case ETHTOOL_SRXCLSRLDEL:
		return zc_delete_rule(netdev_priv(dev), command->fs.location);
	default:
		return -EOPNOTSUPP;
	}
}

static u32 zc_get_indir_size(struct net_device *dev)
{
	return ZC_INDIR_SIZE;
}

static u32 zc_get_key_size(struct net_device *dev)
{
	return ZC_KEY_SIZE;
}

static int zc_get_rxfh(struct net_device *dev, struct ethtool_rxfh_param *rss)
{
	struct zc_device *zc = netdev_priv(dev);
	unsigned int slot;

	rss->hfunc = ETH_RSS_HASH_TOP;
	if (rss->key)
		memcpy(rss->key, zc->key, sizeof(zc->key));
	for (slot = 0; rss->indir && slot < ZC_INDIR_SIZE; slot++)
		rss->indir[slot] = zc->indir[0][slot];
	return 0;
}

/* The core has checked that no slot names a queue that the NIC has not. */
static void zc_set_indir(struct zc_device *zc, u32 context, const u32 *indir)
{
	unsigned int slot;

	spin_lock_bh(&zc->rules_lock);
	for (slot = 0; slot < ZC_INDIR_SIZE; slot++)
		zc->indir[context][slot] = indir[slot];
	spin_unlock_bh(&zc->rules_lock);
}

static bool zc_hash_supported(const struct ethtool_rxfh_param *rss)
{
	return rss->hfunc == ETH_RSS_HASH_NO_CHANGE || rss->hfunc == ETH_RSS_HASH_TOP;
}

static int zc_set_rxfh(struct net_device *dev, struct ethtool_rxfh_param *rss,
		       struct netlink_ext_ack *extack)
{
	struct zc_device *zc = netdev_priv(dev);

	if (!zc_hash_supported(rss))
		return -EOPNOTSUPP;
	if (rss->key)
		memcpy(zc->key, rss->key, sizeof(zc->key));
	if (rss->indir)
		zc_set_indir(zc, 0, rss->indir);
	return 0;
}

static int zc_create_context(struct net_device *dev, struct ethtool_rxfh_context *context,
			     const struct ethtool_rxfh_param *rss,
			     struct netlink_ext_ack *extack)
{
	if (!zc_hash_supported(rss))
		return -EOPNOTSUPP;
	/* Without a table of its own a context begins with the one the core has made for it. */
	zc_set_indir(netdev_priv(dev), rss->rss_context,
		     rss->indir ?: ethtool_rxfh_context_indir(context));
	return 0;
}

static int zc_modify_context(struct net_device *dev, struct ethtool_rxfh_context *context,
			     const struct ethtool_rxfh_param *rss,
			     struct netlink_ext_ack *extack)
{
	if (!zc_hash_supported(rss))
		return -EOPNOTSUPP;
	if (rss->indir)
		zc_set_indir(netdev_priv(dev), rss->rss_context, rss->indir);
	return 0;
}

static int zc_remove_context(struct net_device *dev, struct ethtool_rxfh_context *context,
			     u32 number, struct netlink_ext_ack *extack)
{
	return 0;	/* the core refuses while a rule uses it, and nothing else reads the table */
}

static const char zc_stat_names[][ETH_GSTRING_LEN] = {
	"packets", "bytes", "frags", "niov_frags", "alloc_fail", "drops",
};

static int zc_get_sset_count(struct net_device *dev, int set)
{
	return set == ETH_SS_STATS ? zc_queues * ARRAY_SIZE(zc_stat_names) : -EOPNOTSUPP;
}

static void zc_get_strings(struct net_device *dev, u32 set, u8 *data)
{
	unsigned int queue, stat;

	for (queue = 0; queue < zc_queues; queue++)
		for (stat = 0; stat < ARRAY_SIZE(zc_stat_names); stat++)
			ethtool_sprintf(&data, "rx%u_%s", queue, zc_stat_names[stat]);
}

/* Read while the queue's poll may be counting: each figure is whole, together they may be apart. */
static void zc_get_ethtool_stats(struct net_device *dev, struct ethtool_stats *stats, u64 *data)
{
	struct zc_device *zc = netdev_priv(dev);
	unsigned int index;

	for (index = 0; index < zc_queues; index++) {
		struct zc_queue *queue = &zc->queues[index];

		*data++ = READ_ONCE(queue->packets);
		*data++ = READ_ONCE(queue->bytes);
		*data++ = READ_ONCE(queue->frags);
		*data++ = READ_ONCE(queue->niov_frags);
		*data++ = READ_ONCE(queue->alloc_fail);
		*data++ = READ_ONCE(queue->drops);
	}
}

static u32 zc_get_link(struct net_device *dev)
{
	return netif_carrier_ok(dev);
}

static void zc_get_drvinfo(struct net_device *dev, struct ethtool_drvinfo *info)
{
	strscpy(info->driver, ZC_DRIVER, sizeof(info->driver));
}

const struct ethtool_ops zc_ethtool_ops = {
	.supported_ring_params	= ETHTOOL_RING_USE_TCP_DATA_SPLIT | ETHTOOL_RING_USE_HDS_THRS,
	.rxfh_max_num_contexts	= ZC_CONTEXTS_MAX,
	.get_drvinfo		= zc_get_drvinfo,
	.get_link		= zc_get_link,
	.get_ringparam		= zc_get_ringparam,
	.set_ringparam		= zc_set_ringparam,
	.get_channels		= zc_get_channels,
	.get_rx_ring_count	= zc_get_rx_ring_count,
	.get_rxnfc		= zc_get_rxnfc,
	.set_rxnfc		= zc_set_rxnfc,
	.get_rxfh_indir_size	= zc_get_indir_size,
	.get_rxfh_key_size	= zc_get_key_size,
	.get_rxfh		= zc_get_rxfh,
	.set_rxfh		= zc_set_rxfh,
	.create_rxfh_context	= zc_create_context,
	.modify_rxfh_context	= zc_modify_context,
	.remove_rxfh_context	= zc_remove_context,
	.get_sset_count		= zc_get_sset_count,
	.get_strings		= zc_get_strings,
	.get_ethtool_stats	= zc_get_ethtool_stats,
};

static void zc_get_queue_stats_rx(struct net_device *dev, int index,
				  struct netdev_queue_stats_rx *stats)
{
	struct zc_device *zc = netdev_priv(dev);

	stats->packets = READ_ONCE(zc->queues[index].packets);
	stats->bytes = READ_ONCE(zc->queues[index].bytes);
	stats->alloc_fail = READ_ONCE(zc->queues[index].alloc_fail);
	stats->hw_drops = READ_ONCE(zc->queues[index].drops);
}

static void zc_get_base_stats(struct net_device *dev, struct netdev_queue_stats_rx *rx,
			      struct netdev_queue_stats_tx *tx)
{
	/* Queues count for as long as the device lives, so nothing is left to add. */
	rx->packets = 0;
	rx->bytes = 0;
	rx->alloc_fail = 0;
	rx->hw_drops = 0;
}

const struct netdev_stat_ops zc_stat_ops = {
	.get_queue_stats_rx	= zc_get_queue_stats_rx,
	.get_base_stats		= zc_get_base_stats,
};
