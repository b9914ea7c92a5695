/* SPDX-License-Identifier: MIT */
#include "nfqmsg.h"

#include <string.h>

#include <arpa/inet.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <linux/netlink.h>
#include <sys/socket.h>

#define QUEUE_TYPE(msg) ((uint16_t)(NFNL_SUBSYS_QUEUE << 8 | (msg)))

enum {
	ATTR_HEADER_LEN = sizeof(struct nlattr),
	HEADERS_LEN = sizeof(struct nlmsghdr) + sizeof(struct nfgenmsg),
};

/* Messages and attributes begin at multiples of 4 (NLMSG_ALIGN, NLA_ALIGN). */
#define ALIGN4(len) (((len) + 3) & ~(size_t)3)

_Static_assert(NFQMSG_ACCEPT_LEN ==
		   HEADERS_LEN + ATTR_HEADER_LEN + sizeof(struct nfqnl_msg_verdict_hdr),
	       "headers and a verdict");
_Static_assert(NFQMSG_REPLACE_HEADROOM == NFQMSG_ACCEPT_LEN + ATTR_HEADER_LEN,
	       "a verdict and the payload's attribute header");
_Static_assert(NFQMSG_PARAMS_LEN == HEADERS_LEN + ATTR_HEADER_LEN +
					ALIGN4(sizeof(struct nfqnl_msg_config_params)) +
					2 * (ATTR_HEADER_LEN + sizeof(uint32_t)),
	       "headers, parameters, flags and mask");
_Static_assert(NFQMSG_NOOP_LEN == sizeof(struct nlmsghdr), "a header");

static uint32_t load32(const uint8_t *p)
{
	uint32_t word;

	memcpy(&word, p, sizeof(word));
	return word;
}

/* Reads one attribute of a queued packet: @len bytes of content at @data. */
static void read_attribute(struct nfqmsg *msg, uint16_t type, uint8_t *data, size_t len)
{
	switch (type) {
	case NFQA_PAYLOAD:
		msg->payload = data;
		msg->caplen = len;
		break;
	case NFQA_CAP_LEN:
		if (len >= sizeof(uint32_t))
			msg->wirelen = ntohl(load32(data));
		break;
	case NFQA_SKB_INFO:
		if (len >= sizeof(uint32_t))
			msg->partial = ntohl(load32(data)) & (NFQA_SKB_CSUMNOTREADY | NFQA_SKB_GSO);
		break;
	default:
		break;
	}
}

/* Reads the attributes of a queued packet. Returns false if a length is wrong or the id missing. */
static bool read_packet(uint8_t *start, size_t len, struct nfqmsg *msg)
{
	bool has_id = false;
	size_t at = HEADERS_LEN;

	while (at < len && len - at >= ATTR_HEADER_LEN) {
		struct nlattr attr;
		uint8_t *data = start + at + ATTR_HEADER_LEN;
		size_t data_len;
		uint16_t type;

		memcpy(&attr, start + at, sizeof(attr));
		if (attr.nla_len < ATTR_HEADER_LEN || attr.nla_len > len - at)
			return false;
		data_len = attr.nla_len - (size_t)ATTR_HEADER_LEN;
		type = attr.nla_type & (uint16_t)NLA_TYPE_MASK;
		if (type == NFQA_PACKET_HDR && data_len >= sizeof(struct nfqnl_msg_packet_hdr)) {
			msg->id = ntohl(load32(data));
			has_id = true;
		}
		read_attribute(msg, type, data, data_len);
		at += ALIGN4(attr.nla_len);
	}
	if (msg->payload)
		msg->headroom = (size_t)(msg->payload - start);
	else if (!msg->wirelen)
		msg->wirelen = 1; /* so that it counts as truncated */
	if (msg->wirelen < msg->caplen)
		msg->wirelen = msg->caplen;
	return has_id;
}

static enum nfqmsg_kind read_status(const uint8_t *start, size_t len, struct nfqmsg *msg)
{
	struct nlmsgerr status;

	if (len < sizeof(struct nlmsghdr) + sizeof(status))
		return NFQMSG_MALFORMED;
	memcpy(&status, start + sizeof(struct nlmsghdr), sizeof(status));
	msg->error = status.error;
	msg->request = status.msg.nlmsg_type;
	msg->sequence = status.msg.nlmsg_seq;
	return NFQMSG_STATUS;
}

static enum nfqmsg_kind read_message(uint8_t *start, size_t len, uint16_t type, struct nfqmsg *msg)
{
	if (type == NLMSG_ERROR)
		return read_status(start, len, msg);
	if (type != QUEUE_TYPE(NFQNL_MSG_PACKET))
		return NFQMSG_OTHER;
	return len >= HEADERS_LEN && read_packet(start, len, msg) ? NFQMSG_PACKET
								  : NFQMSG_MALFORMED;
}

bool nfqmsg_next(uint8_t *buf, size_t len, size_t *at, struct nfqmsg *msg)
{
	struct nlmsghdr header = { .nlmsg_len = 0 };
	uint8_t *start = buf + *at;
	size_t left = len - *at;

	if (!left)
		return false;
	*msg = (struct nfqmsg){ .kind = NFQMSG_MALFORMED };
	if (left >= sizeof(struct nlmsghdr))
		memcpy(&header, start, sizeof(header));
	if (header.nlmsg_len >= sizeof(struct nlmsghdr) && header.nlmsg_len <= left)
		msg->kind = read_message(start, header.nlmsg_len, header.nlmsg_type, msg);
	if (msg->kind == NFQMSG_MALFORMED || ALIGN4(header.nlmsg_len) > left)
		*at = len;
	else
		*at += ALIGN4(header.nlmsg_len);
	return true;
}

static void put_headers(uint8_t *buf, size_t len, uint16_t type, uint16_t flags, uint16_t queue)
{
	struct nlmsghdr header = {
		.nlmsg_len = (uint32_t)len,
		.nlmsg_type = type,
		.nlmsg_flags = flags,
	};
	struct nfgenmsg family = {
		.nfgen_family = AF_UNSPEC,
		.version = NFNETLINK_V0,
		.res_id = htons(queue),
	};

	memcpy(buf, &header, sizeof(header));
	memcpy(buf + sizeof(struct nlmsghdr), &family, sizeof(family));
}

/* Writes an attribute and returns the place of the next one. */
static uint8_t *put_attribute(uint8_t *at, uint16_t type, const void *data, size_t len)
{
	struct nlattr attr = { .nla_len = (uint16_t)(ATTR_HEADER_LEN + len), .nla_type = type };

	memcpy(at, &attr, sizeof(attr));
	memcpy(at + ATTR_HEADER_LEN, data, len);
	memset(at + ATTR_HEADER_LEN + len, 0, ALIGN4(len) - len);
	return at + ATTR_HEADER_LEN + ALIGN4(len);
}

static void put_verdict(uint8_t *buf, size_t len, uint16_t type, uint16_t queue, uint32_t id)
{
	struct nfqnl_msg_verdict_hdr verdict = { .verdict = htonl(NF_ACCEPT), .id = htonl(id) };

	put_headers(buf, len, QUEUE_TYPE(type), NLM_F_REQUEST, queue);
	put_attribute(buf + HEADERS_LEN, NFQA_VERDICT_HDR, &verdict, sizeof(verdict));
}

void nfqmsg_accept_until(uint8_t *buf, uint16_t queue, uint32_t id)
{
	put_verdict(buf, NFQMSG_ACCEPT_LEN, NFQNL_MSG_VERDICT_BATCH, queue, id);
}

uint8_t *nfqmsg_replace(const struct nfqmsg *msg, uint16_t queue, size_t *length)
{
	uint8_t *start = msg->payload - NFQMSG_REPLACE_HEADROOM;
	size_t len = NFQMSG_REPLACE_HEADROOM + msg->caplen;
	struct nlattr attr = { .nla_len = (uint16_t)(ATTR_HEADER_LEN + msg->caplen),
			       .nla_type = NFQA_PAYLOAD };

	put_verdict(start, len, NFQNL_MSG_VERDICT, queue, msg->id);
	memcpy(msg->payload - ATTR_HEADER_LEN, &attr, sizeof(attr));
	*length = ALIGN4(len);
	memset(start + len, 0, *length - len);
	return start;
}

void nfqmsg_params(uint8_t *buf, uint16_t queue, uint32_t range)
{
	struct nfqnl_msg_config_params params = {
		.copy_range = htonl(range),
		.copy_mode = NFQNL_COPY_PACKET,
	};
	uint32_t flags = htonl(NFQA_CFG_F_FAIL_OPEN);
	uint32_t mask = htonl(NFQA_CFG_F_FAIL_OPEN | NFQA_CFG_F_GSO | NFQA_CFG_F_CONNTRACK |
			      NFQA_CFG_F_UID_GID | NFQA_CFG_F_SECCTX);
	uint8_t *at = buf + HEADERS_LEN;

	put_headers(buf, NFQMSG_PARAMS_LEN, QUEUE_TYPE(NFQNL_MSG_CONFIG), NLM_F_REQUEST | NLM_F_ACK,
		    queue);
	at = put_attribute(at, NFQA_CFG_PARAMS, &params, sizeof(params));
	at = put_attribute(at, NFQA_CFG_MASK, &mask, sizeof(mask));
	put_attribute(at, NFQA_CFG_FLAGS, &flags, sizeof(flags));
}

void nfqmsg_noop(uint8_t *buf, uint32_t sequence)
{
	struct nlmsghdr header = {
		.nlmsg_len = NFQMSG_NOOP_LEN,
		.nlmsg_type = NLMSG_NOOP,
		.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK,
		.nlmsg_seq = sequence,
	};

	memcpy(buf, &header, sizeof(header));
}

bool nfqmsg_is_verdict(uint16_t request)
{
	return request == QUEUE_TYPE(NFQNL_MSG_VERDICT) ||
	       request == QUEUE_TYPE(NFQNL_MSG_VERDICT_BATCH);
}

bool nfqmsg_is_params(uint16_t request)
{
	return request == QUEUE_TYPE(NFQNL_MSG_CONFIG);
}

bool nfqmsg_is_noop(uint16_t request)
{
	return request == NLMSG_NOOP;
}
