/* SPDX-License-Identifier: Apache-2.0
 *
 * Two requests over generic netlink: the family's number, then the queue. See napi.h; the messages
 * are those of Documentation/netlink/specs/netdev.yaml.
 */
#include "napi.h"

#include <linux/genetlink.h>
#include <linux/netdev.h>
#include <linux/netlink.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MESSAGE_BYTES_MAX 4096

struct message {
    struct nlmsghdr head;
    struct genlmsghdr generic;
    char attributes[MESSAGE_BYTES_MAX];
};

__attribute__((noreturn)) static void die(const char *what) {
    fprintf(stderr, "asking for the NAPI id of a queue: %s: %m\n", what);
    exit(2);
}

static void begin(struct message *m, uint16_t family, uint8_t command) {
    memset(m, 0, sizeof(*m));
    m->head.nlmsg_type = family;
    m->head.nlmsg_flags = NLM_F_REQUEST;
    m->head.nlmsg_len = NLMSG_LENGTH(GENL_HDRLEN);
    m->generic.cmd = command;
    m->generic.version = 1;
}

static void put(struct message *m, uint16_t type, const void *data, size_t bytes) {
    struct nlattr *a = (void *)((char *)m + NLMSG_ALIGN(m->head.nlmsg_len));

    a->nla_type = type;
    a->nla_len = (uint16_t)(NLA_HDRLEN + bytes);
    memcpy((char *)a + NLA_HDRLEN, data, bytes);
    m->head.nlmsg_len = NLMSG_ALIGN(m->head.nlmsg_len) + NLA_ALIGN(a->nla_len);
}

/* Sends the message and puts the answer in its place. */
static void ask(int netlink, struct message *m, const char *what) {
    if (send(netlink, m, m->head.nlmsg_len, 0) < 0 || recv(netlink, m, sizeof(*m), 0) < 0)
        die(what);
    if (m->head.nlmsg_type == NLMSG_ERROR)
        die(what);
}

/* The number in an answer's attribute; 0 when it has none. */
static uint32_t get(const struct message *m, uint16_t type) {
    uint32_t at = NLMSG_LENGTH(GENL_HDRLEN), value = 0;

    while (at + NLA_HDRLEN <= m->head.nlmsg_len) {
        const struct nlattr *a = (const void *)((const char *)m + at);
        size_t bytes = (size_t)a->nla_len - NLA_HDRLEN;
        if ((a->nla_type & NLA_TYPE_MASK) == type && bytes <= sizeof(value))
            memcpy(&value, (const char *)a + NLA_HDRLEN, bytes);
        at += NLA_ALIGN(a->nla_len);
    }
    return value;
}

uint32_t napi_of_queue(uint32_t interface_index, uint32_t queue) {
    const uint32_t type = NETDEV_QUEUE_TYPE_RX;
    struct message m;
    int netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);

    if (netlink < 0)
        die("socket");
    begin(&m, GENL_ID_CTRL, CTRL_CMD_GETFAMILY);
    put(&m, CTRL_ATTR_FAMILY_NAME, NETDEV_FAMILY_NAME, sizeof(NETDEV_FAMILY_NAME));
    ask(netlink, &m, "family " NETDEV_FAMILY_NAME);
    uint16_t family = (uint16_t)get(&m, CTRL_ATTR_FAMILY_ID);
    begin(&m, family, NETDEV_CMD_QUEUE_GET);
    put(&m, NETDEV_A_QUEUE_IFINDEX, &interface_index, sizeof(interface_index));
    put(&m, NETDEV_A_QUEUE_TYPE, &type, sizeof(type));
    put(&m, NETDEV_A_QUEUE_ID, &queue, sizeof(queue));
    ask(netlink, &m, "queue");
    close(netlink);
    return get(&m, NETDEV_A_QUEUE_NAPI_ID);
}
