// SPDX-License-Identifier: GPL-2.0-only
/*
 * zcsim, the devices: module parameters, the pair zc0 <-> zc1, and the transmit path, which puts
 * a packet on the backlog of the peer's rx queue that the peer's rules and RSS table name.
 */
#include <linux/dma-mapping.h>
#include <linux/etherdevice.h>
#include <linux/log2.h>
#include <linux/module.h>
#include <linux/platform_device.h>

#include "zcsim.h"

#define ZC_MTU_MAX 65000

unsigned int zc_queues = 4;
module_param_named(queues, zc_queues, uint, 0444);
MODULE_PARM_DESC(queues, "rx (and tx) queues per device");

unsigned int zc_posted = 64;
module_param_named(posted, zc_posted, uint, 0444);
MODULE_PARM_DESC(posted, "buffers posted ahead per rx queue");

unsigned int zc_backlog = 4096;
module_param_named(backlog, zc_backlog, uint, 0644);
MODULE_PARM_DESC(backlog, "packets that may wait for an rx queue before more are dropped");

bool zc_pack;
module_param_named(pack, zc_pack, bool, 0644);
MODULE_PARM_DESC(pack, "packets share buffers; off: each packet begins a new buffer");

static int zc_set_power_of_two(const char *text, const struct kernel_param *parameter)
{
	unsigned int value;
	int err = kstrtouint(text, 0, &value);

	if (err)
		return err;
	if (!is_power_of_2(value) || value > PAGE_SIZE)
		return -EINVAL;
	return param_set_uint(text, parameter);
}

static const struct kernel_param_ops zc_power_of_two_ops = {
	.set	= zc_set_power_of_two,
	.get	= param_get_uint,
};

unsigned int zc_pack_align = 64;
module_param_cb(pack_align, &zc_power_of_two_ops, &zc_pack_align, 0644);
MODULE_PARM_DESC(pack_align, "alignment of a packet's payload in a shared buffer, a power of two");

unsigned int zc_buffer_offset;
module_param_named(buffer_offset, zc_buffer_offset, uint, 0644);
MODULE_PARM_DESC(buffer_offset, "offset of the payload in a fresh buffer");

unsigned int zc_drop_every;
module_param_named(drop_every, zc_drop_every, uint, 0644);
MODULE_PARM_DESC(drop_every, "drop every Nth packet that has payload; 0: none");

unsigned int zc_linear_bytes;
module_param_named(linear_bytes, zc_linear_bytes, uint, 0644);
MODULE_PARM_DESC(linear_bytes, "payload bytes that stay with the header: an imperfect split");

bool zc_gro = true;
module_param_named(gro, zc_gro, bool, 0644);
MODULE_PARM_DESC(gro, "hand packets to the stack through GRO");

static struct net_device *zc_devices[2];
static struct platform_device *zc_parent;

static netdev_tx_t zc_xmit(struct sk_buff *skb, struct net_device *dev)
{
	struct zc_device *zc = netdev_priv(dev);
	struct zc_device *peer = netdev_priv(zc->peer);
	struct zc_queue *queue;

	if (!netif_running(zc->peer) || !pskb_may_pull(skb, ETH_HLEN))
		goto drop;
	queue = &peer->queues[zc_steer(peer, skb)];
	if (skb_queue_len_lockless(&queue->backlog) >= zc_backlog)
		goto drop;
	dev_sw_netstats_tx_add(dev, 1, skb->len);
	skb_tx_timestamp(skb);
	skb_queue_tail(&queue->backlog, skb);
	napi_schedule(&queue->napi);
	return NETDEV_TX_OK;
drop:
	dev_core_stats_tx_dropped_inc(dev);
	kfree_skb(skb);
	return NETDEV_TX_OK;
}

static int zc_set_features(struct net_device *dev, netdev_features_t features)
{
	/* As on real NICs: rules do not survive their feature being turned off. */
	if (!(features & NETIF_F_NTUPLE))
		zc_rules_flush(netdev_priv(dev));
	return 0;
}

static const struct net_device_ops zc_netdev_ops = {
	.ndo_open		= zc_open,
	.ndo_stop		= zc_stop,
	.ndo_start_xmit		= zc_xmit,
	.ndo_set_features	= zc_set_features,
	.ndo_set_mac_address	= eth_mac_addr,
	.ndo_validate_addr	= eth_validate_addr,
};

static void zc_destroy(struct net_device *dev)
{
	struct zc_device *zc = netdev_priv(dev);
	unsigned int index;

	for (index = 0; zc->queues && index < zc_queues; index++) {
		struct zc_queue *queue = &zc->queues[index];

		if (!queue->posted)
			break;
		netif_napi_del(&queue->napi);
		skb_queue_purge(&queue->backlog);
		kfree(queue->posted);
	}
	kvfree(zc->queues);
	free_netdev(dev);
}

static int zc_create_queues(struct net_device *dev)
{
	struct zc_device *zc = netdev_priv(dev);
	unsigned int index;

	zc->queues = kvcalloc(zc_queues, sizeof(*zc->queues), GFP_KERNEL);
	if (!zc->queues)
		return -ENOMEM;
	for (index = 0; index < zc_queues; index++) {
		struct zc_queue *queue = &zc->queues[index];

		queue->posted = kcalloc(zc_posted, sizeof(*queue->posted), GFP_KERNEL);
		if (!queue->posted)
			return -ENOMEM;
		skb_queue_head_init(&queue->backlog);
		netif_napi_add_config(dev, &queue->napi, zc_poll, index);
	}
	return 0;
}

static struct net_device *zc_create(unsigned int number)
{
	struct zc_device *zc;
	struct net_device *dev = alloc_etherdev_mqs(sizeof(*zc), zc_queues, zc_queues);

	if (!dev)
		return NULL;
	zc = netdev_priv(dev);
	zc->dev = dev;
	zc->header_split = true;
	spin_lock_init(&zc->rules_lock);
	zc_rss_reset(zc);
	if (zc_create_queues(dev)) {
		zc_destroy(dev);
		return NULL;
	}
	snprintf(dev->name, IFNAMSIZ, "zc%u", number);
	SET_NETDEV_DEV(dev, &zc_parent->dev);
	eth_hw_addr_random(dev);
	dev->netdev_ops = &zc_netdev_ops;
	dev->ethtool_ops = &zc_ethtool_ops;
	dev->queue_mgmt_ops = &zc_queue_ops;
	dev->stat_ops = &zc_stat_ops;
	dev->pcpu_stat_type = NETDEV_PCPU_STAT_TSTATS;
	dev->max_mtu = ZC_MTU_MAX;
	dev->features = NETIF_F_SG | NETIF_F_HW_CSUM | NETIF_F_RXCSUM | NETIF_F_HIGHDMA |
			NETIF_F_GRO | NETIF_F_NTUPLE;
	dev->hw_features = dev->features | NETIF_F_TSO | NETIF_F_TSO6;
	dev->cfg->hds_config = ETHTOOL_TCP_DATA_SPLIT_ENABLED;
	netif_carrier_off(dev);
	return dev;
}

static int zc_create_pair(void)
{
	unsigned int number;
	int err;

	for (number = 0; number < 2; number++) {
		zc_devices[number] = zc_create(number);
		if (!zc_devices[number])
			return -ENOMEM;
	}
	((struct zc_device *)netdev_priv(zc_devices[0]))->peer = zc_devices[1];
	((struct zc_device *)netdev_priv(zc_devices[1]))->peer = zc_devices[0];
	err = register_netdev(zc_devices[0]);
	if (err)
		return err;
	err = register_netdev(zc_devices[1]);
	if (err)
		unregister_netdev(zc_devices[0]);
	return err;
}

static void zc_destroy_pair(void)
{
	unsigned int number;

	for (number = 0; number < 2; number++)
		if (zc_devices[number])
			zc_destroy(zc_devices[number]);
}

static int __init zc_init(void)
{
	int err;

	if (!zc_queues || zc_queues > ZC_QUEUES_MAX || !zc_posted)
		return -EINVAL;
	zc_parent = platform_device_register_simple(ZC_DRIVER, -1, NULL, 0);
	if (IS_ERR(zc_parent))
		return PTR_ERR(zc_parent);
	err = dma_coerce_mask_and_coherent(&zc_parent->dev, DMA_BIT_MASK(64));
	if (!err)
		err = zc_create_pair();
	if (err) {
		zc_destroy_pair();
		platform_device_unregister(zc_parent);
	}
	return err;
}

static void __exit zc_exit(void)
{
	unregister_netdev(zc_devices[0]);
	unregister_netdev(zc_devices[1]);
	zc_destroy_pair();
	platform_device_unregister(zc_parent);
}

module_init(zc_init);
module_exit(zc_exit);
MODULE_DESCRIPTION("a pair of linked virtual NICs with header split and memory-provider queues");
MODULE_LICENSE("GPL");
