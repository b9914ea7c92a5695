/* SPDX-License-Identifier: MIT */
#ifndef MESSAGES_H
#define MESSAGES_H

/* nfnetlink_queue messages as the kernel builds them (nfqnl_build_packet_message()). */

#include "harness.h"

#include <arpa/inet.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <linux/netlink.h>

enum {
	MESSAGE_MAX = 72 * 1024,
	PACKET_TYPE = NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_PACKET,
	VERDICT_TYPE = NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_VERDICT,
	BATCH_TYPE = NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_VERDICT_BATCH,
	CONFIG_TYPE = NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_CONFIG,
};

/** struct message - a datagram being built; the next piece goes to @len */
struct message {
	_Alignas(8) uint8_t bytes[MESSAGE_MAX];
	size_t len;
};

static inline void pad(struct message *m)
{
	while (m->len % 4)
		m->bytes[m->len++] = 0;
}

static inline void put_bytes(struct message *m, const void *data, size_t len)
{
	if (len)
		memcpy(m->bytes + m->len, data, len);
	m->len += len;
}

/** begin_message() - write a header; returns its offset for end_message() */
static inline size_t begin_message(struct message *m, uint16_t type)
{
	const struct nlmsghdr header = { .nlmsg_type = type };
	const struct nfgenmsg family = { .nfgen_family = 2, .version = NFNETLINK_V0 };
	size_t start;

	pad(m);
	start = m->len;
	put_bytes(m, &header, sizeof(header));
	put_bytes(m, &family, sizeof(family));
	return start;
}

/** end_message() - fill in the length, which the kernel does not round up */
static inline void end_message(struct message *m, size_t start)
{
	uint32_t len = (uint32_t)(m->len - start);

	memcpy(m->bytes + start, &len, sizeof(len));
}

static inline void put_attribute(struct message *m, uint16_t type, const void *data, size_t len)
{
	const struct nlattr attr = { .nla_len = (uint16_t)(sizeof(attr) + len), .nla_type = type };

	pad(m);
	put_bytes(m, &attr, sizeof(attr));
	put_bytes(m, data, len);
}

static inline void put_attribute32(struct message *m, uint16_t type, uint32_t value)
{
	value = htonl(value);
	put_attribute(m, type, &value, sizeof(value));
}

static inline void put_packet_header(struct message *m, uint32_t id)
{
	const struct nfqnl_msg_packet_hdr header = {
		.packet_id = htonl(id),
		.hw_protocol = htons(0x0800),
		.hook = 4,
	};

	put_attribute(m, NFQA_PACKET_HDR, &header, sizeof(header));
}

/** put_packet() - a queued packet, copied whole, as from mangle/POSTROUTING; returns its offset */
static inline size_t put_packet(struct message *m, uint32_t id, const void *payload, size_t len)
{
	size_t start = begin_message(m, PACKET_TYPE);

	put_packet_header(m, id);
	put_attribute32(m, NFQA_IFINDEX_OUTDEV, 2);
	put_attribute32(m, NFQA_MARK, 0x4000);
	put_attribute(m, NFQA_PAYLOAD, payload, len);
	end_message(m, start);
	return start;
}

/** put_answer() - NLMSG_ERROR: the answer to the request with header @request */
static inline void put_answer(struct message *m, const struct nlmsghdr *request, int error)
{
	const struct nlmsghdr header = {
		.nlmsg_len = sizeof(header) + sizeof(struct nlmsgerr),
		.nlmsg_type = NLMSG_ERROR,
	};
	const struct nlmsgerr status = { .error = error, .msg = *request };

	pad(m);
	put_bytes(m, &header, sizeof(header));
	put_bytes(m, &status, sizeof(status));
}

/** put_status() - the same for a request of which only the type is set */
static inline void put_status(struct message *m, uint16_t request, int error)
{
	const struct nlmsghdr header = { .nlmsg_len = sizeof(header), .nlmsg_type = request };

	put_answer(m, &header, error);
}

#endif
