/* SPDX-License-Identifier: MIT */
#ifndef FIX_MESSAGES_H
#define FIX_MESSAGES_H

/* Fixes the lengths of netlink messages and attributes, which random mutation nearly always breaks.
 */

#include "messages.h"

enum { MESSAGE_HEADERS = sizeof(struct nlmsghdr) + sizeof(struct nfgenmsg) };

static inline size_t aligned(size_t len)
{
	return (len + 3) & ~(size_t)3;
}

/* Attributes that reach beyond the message, or are shorter than their header, get the rest of it.
 */
static inline void fix_attribute_lengths(uint8_t *message, size_t len)
{
	struct nlattr attr;

	for (size_t at = MESSAGE_HEADERS; at < len && len - at >= sizeof(attr);
	     at += aligned(attr.nla_len)) {
		memcpy(&attr, message + at, sizeof(attr));
		if (attr.nla_len >= sizeof(attr) && attr.nla_len <= len - at)
			continue;
		attr.nla_len = (uint16_t)(len - at < 0xffff ? len - at : 0xffff);
		memcpy(message + at, &attr, sizeof(attr));
	}
}

/** fix_messages() - fix parts of the datagram @bytes, chosen by the bits of @choice */
static inline void fix_messages(uint8_t *bytes, size_t len, unsigned int choice)
{
	struct nlmsghdr header;

	for (size_t at = 0; at < len && len - at >= sizeof(header);
	     at += aligned(header.nlmsg_len), choice = choice >> 3 | choice << 29) {
		memcpy(&header, bytes + at, sizeof(header));
		if (header.nlmsg_len < sizeof(header) || header.nlmsg_len > len - at)
			header.nlmsg_len = (uint32_t)(len - at);
		if ((choice & 3) == 0)
			header.nlmsg_type = PACKET_TYPE;
		memcpy(bytes + at, &header, sizeof(header));
		if (choice & 4)
			fix_attribute_lengths(bytes + at, header.nlmsg_len);
	}
}

#endif
