// SPDX-License-Identifier: GPL-2.0-only
/*
 * zcsim, the memory of rx queues: one page pool per queue, exchanged by the network core when a
 * memory provider takes the queue or leaves it.
 *
 * All functions run under the device's instance lock, except where they are called by open/stop,
 * which hold it too.
 */
#include <linux/dma-mapping.h>
#include <linux/log2.h>
#include <net/netdev_lock.h>

#include "zcsim.h"

static int zc_pool_create(struct net_device *dev, u32 buffer_size, int index,
			  struct page_pool **out)
{
	struct zc_device *zc = netdev_priv(dev);
	struct page_pool_params params = {
		.order		= ilog2(buffer_size) - PAGE_SHIFT,
		.pool_size	= max(zc_posted, 64U),
		.nid		= NUMA_NO_NODE,
		.dev		= dev->dev.parent,
		.napi		= &zc->queues[index].napi,
		.dma_dir	= DMA_FROM_DEVICE,
		.max_len	= buffer_size,
		.netdev		= dev,
		.queue_idx	= index,
		.flags		= PP_FLAG_DMA_MAP | PP_FLAG_DMA_SYNC_DEV |
				  PP_FLAG_ALLOW_UNREADABLE_NETMEM,
	};
	struct page_pool *pool = page_pool_create(&params);

	if (IS_ERR(pool))
		return PTR_ERR(pool);
	*out = pool;
	return 0;
}

static int zc_memory_alloc(struct net_device *dev, struct netdev_queue_config *config,
			   void *memory, int index)
{
	struct zc_queue_memory *m = memory;

	m->buffer_size = config->rx_page_size ?: PAGE_SIZE;
	return zc_pool_create(dev, m->buffer_size, index, &m->pool);
}

static void zc_memory_free(struct net_device *dev, void *memory)
{
	struct zc_queue_memory *m = memory;

	if (m->pool)
		page_pool_destroy(m->pool);
}

static int zc_queue_start(struct net_device *dev, struct netdev_queue_config *config,
			  void *memory, int index)
{
	struct zc_device *zc = netdev_priv(dev);
	struct zc_queue *queue = &zc->queues[index];
	struct zc_queue_memory *m = memory;

	queue->pool = m->pool;
	queue->buffer_size = m->buffer_size;
	queue->head = 0;
	queue->tail = 0;
	napi_enable_locked(&queue->napi);
	/* Packets may have come while the queue was stopped, and nobody could be notified then. */
	local_bh_disable();
	napi_schedule(&queue->napi);
	local_bh_enable();
	return 0;
}

static int zc_queue_stop(struct net_device *dev, void *memory, int index)
{
	struct zc_device *zc = netdev_priv(dev);
	struct zc_queue *queue = &zc->queues[index];
	struct zc_queue_memory *m = memory;

	napi_disable_locked(&queue->napi);
	zc_drain(queue);
	page_pool_disable_direct_recycling(queue->pool);
	m->pool = queue->pool;
	m->buffer_size = queue->buffer_size;
	queue->pool = NULL;
	return 0;
}

static void zc_default_config(struct net_device *dev, struct netdev_queue_config *config)
{
	config->rx_page_size = PAGE_SIZE;
}

static int zc_validate_config(struct net_device *dev, struct netdev_queue_config *config,
			      struct netlink_ext_ack *extack)
{
	u32 size = config->rx_page_size;

	if (!is_power_of_2(size) || size < PAGE_SIZE || size > ZC_BUFFER_MAX) {
		NL_SET_ERR_MSG(extack, "buffers are a power of two from a page to 2 MiB");
		return -ERANGE;
	}
	return 0;
}

const struct netdev_queue_mgmt_ops zc_queue_ops = {
	.ndo_queue_mem_size	= sizeof(struct zc_queue_memory),
	.ndo_queue_mem_alloc	= zc_memory_alloc,
	.ndo_queue_mem_free	= zc_memory_free,
	.ndo_queue_start	= zc_queue_start,
	.ndo_queue_stop		= zc_queue_stop,
	.ndo_default_qcfg	= zc_default_config,
	.ndo_validate_qcfg	= zc_validate_config,
	.supported_params	= QCFG_RX_PAGE_SIZE,
};

static int zc_queue_up(struct net_device *dev, int index)
{
	struct zc_device *zc = netdev_priv(dev);
	struct netdev_queue_config config;
	struct zc_queue_memory memory = {};
	int err;

	netdev_queue_config(dev, index, &config);
	err = zc_memory_alloc(dev, &config, &memory, index);
	if (err)
		return err;
	zc_queue_start(dev, &config, &memory, index);
	netif_queue_set_napi(dev, index, NETDEV_QUEUE_TYPE_RX, &zc->queues[index].napi);
	return 0;
}

static void zc_queue_down(struct net_device *dev, int index)
{
	struct zc_device *zc = netdev_priv(dev);
	struct zc_queue_memory memory = {};

	netif_queue_set_napi(dev, index, NETDEV_QUEUE_TYPE_RX, NULL);
	zc_queue_stop(dev, &memory, index);
	zc_memory_free(dev, &memory);
	skb_queue_purge(&zc->queues[index].backlog);
}

int zc_open(struct net_device *dev)
{
	struct zc_device *zc = netdev_priv(dev);
	int index, err;

	for (index = 0; index < zc_queues; index++) {
		err = zc_queue_up(dev, index);
		if (err)
			goto undo;
	}
	netif_tx_start_all_queues(dev);
	if (netif_running(zc->peer)) {
		netif_carrier_on(dev);
		netif_carrier_on(zc->peer);
	}
	return 0;
undo:
	while (--index >= 0)
		zc_queue_down(dev, index);
	return err;
}

int zc_stop(struct net_device *dev)
{
	struct zc_device *zc = netdev_priv(dev);
	int index;

	netif_tx_stop_all_queues(dev);
	netif_carrier_off(dev);
	netif_carrier_off(zc->peer);
	for (index = 0; index < zc_queues; index++)
		zc_queue_down(dev, index);
	return 0;
}
