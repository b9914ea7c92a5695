/* SPDX-License-Identifier: MIT */
#include "packet.h"

#include "checksum.h"

#include <string.h>

enum {
	IPV4_HEADER_LEN = 20,
	IPV4_MORE_FRAGMENTS_AND_OFFSET = 0x3fff,
	IPV4_OPTION_END = 0,
	IPV4_OPTION_NOOP = 1,
	IPV4_OPTION_LOOSE_ROUTE = 131,
	IPV4_OPTION_STRICT_ROUTE = 137,

	IPV6_HEADER_LEN = 40,
	IPV6_EXTENSIONS_MAX = 8, /* bounds hostile chains; real ones have one or two */
	IPV6_HOP_BY_HOP = 0,
	IPV6_ROUTING = 43,
	IPV6_FRAGMENT = 44,
	IPV6_DESTINATION = 60,
	IPV6_OPTION_PAD1 = 0,
	IPV6_OPTION_HOME_ADDRESS = 0xc9,

	ETHERNET_ADDRESSES_LEN = 12,
	ETHERTYPE_VLAN = 0x8100,
	ETHERTYPE_QINQ = 0x88a8,
	VLAN_TAG_LEN = 4,
	VLAN_TAGS_MAX = 2,
};

/* Raw sum of @words 32-bit words at @p: checksum_add() for a few header fields. */
static inline uint64_t sum_words(const uint8_t *p, unsigned int words)
{
	uint64_t sum = 0;

	for (unsigned int i = 0; i < words; i++) {
		uint32_t word;

		memcpy(&word, p + 4 * i, sizeof(word));
		sum += word;
	}
	return sum;
}

/* With a source route the destination in the header is only the next hop (RFC 791, 3.1). Options
 * that cannot be walked to their end count as a source route. */
static bool ipv4_has_source_route(struct view options)
{
	size_t at = 0;

	while (at < options.len) {
		uint8_t type = options.data[at];
		const uint8_t *option;

		if (type == IPV4_OPTION_END)
			return false;
		if (type == IPV4_OPTION_NOOP) {
			at++;
			continue;
		}
		option = view_at(options, at, 2);
		if (!option || option[1] < 2 || type == IPV4_OPTION_LOOSE_ROUTE ||
		    type == IPV4_OPTION_STRICT_ROUTE)
			return true;
		at += option[1];
	}
	return at > options.len;
}

static enum ip_status ipv4_parse(struct view v, struct ip_packet *ip)
{
	const uint8_t *header = view_at(v, 0, IPV4_HEADER_LEN);
	size_t header_len, total_len;
	struct view options;

	if (!header)
		return IP_MALFORMED;
	header_len = (size_t)(header[0] & 0x0f) * 4;
	total_len = load_be16(header + 2);
	if (header_len < IPV4_HEADER_LEN || total_len < header_len ||
	    !view_cut(v, IPV4_HEADER_LEN, header_len - IPV4_HEADER_LEN, &options) ||
	    !view_cut(v, header_len, total_len - header_len, &ip->payload))
		return IP_MALFORMED;
	ip->version = 4;
	ip->protocol = header[9];
	ip->fragment = load_be16(header + 6) & IPV4_MORE_FRAGMENTS_AND_OFFSET;
	ip->rerouted = ipv4_has_source_route(options);
	ip->header = (struct view){ header, header_len };
	ip->pseudo = sum_words(header + 12, 2);
	return IP_OK;
}

/* A home address option replaces the source address in the checksum (RFC 6275, 6.3). Options
 * that cannot be walked to their end count as a home address. */
static bool ipv6_has_home_address(struct view options)
{
	size_t at = 0;

	while (at < options.len) {
		const uint8_t *option;

		if (options.data[at] == IPV6_OPTION_PAD1) {
			at++;
			continue;
		}
		option = view_at(options, at, 2);
		if (!option || option[0] == IPV6_OPTION_HOME_ADDRESS)
			return true;
		at += 2 + (size_t)option[1];
	}
	return at > options.len;
}

/* While segments are left, a routing header holds the final destination, which is the one that
 * the checksum covers (RFC 8200 8.1). */
static bool ipv6_rerouted(uint8_t type, struct view extension)
{
	struct view options;

	if (type == IPV6_ROUTING)
		return extension.data[3] != 0;
	return type == IPV6_DESTINATION && view_skip(extension, 2, &options) &&
	       ipv6_has_home_address(options);
}

/* Walks ip->payload past the extension headers. */
static enum ip_status ipv6_skip_extensions(struct ip_packet *ip)
{
	for (int walked = 0; walked < IPV6_EXTENSIONS_MAX; walked++) {
		uint8_t type = ip->protocol;
		const uint8_t *start;
		struct view extension;

		if (type == IPV6_FRAGMENT)
			ip->fragment = true;
		if (type != IPV6_HOP_BY_HOP && type != IPV6_ROUTING && type != IPV6_DESTINATION)
			return IP_OK;
		start = view_at(ip->payload, 0, 8);
		if (!start || !view_cut(ip->payload, 0, 8 + (size_t)start[1] * 8, &extension) ||
		    !view_skip(ip->payload, extension.len, &ip->payload))
			return IP_MALFORMED;
		ip->rerouted = ip->rerouted || ipv6_rerouted(type, extension);
		ip->protocol = extension.data[0];
	}
	return IP_MALFORMED;
}

static enum ip_status ipv6_parse(struct view v, struct ip_packet *ip)
{
	const uint8_t *header = view_at(v, 0, IPV6_HEADER_LEN);

	/* A payload length of 0 can mean a jumbogram (RFC 2675). UDP tunnels have none; here it
	 * means no payload, so the headers that should follow are missing. */
	if (!header || !view_cut(v, IPV6_HEADER_LEN, load_be16(header + 4), &ip->payload))
		return IP_MALFORMED;
	ip->version = 6;
	ip->protocol = header[6];
	ip->fragment = false;
	ip->rerouted = false;
	ip->header = (struct view){ header, IPV6_HEADER_LEN };
	ip->pseudo = sum_words(header + 8, 8);
	return ipv6_skip_extensions(ip);
}

enum ip_status ip_parse(struct view v, struct ip_packet *ip)
{
	const uint8_t *first = view_at(v, 0, 1);

	if (first && *first >> 4 == 4)
		return ipv4_parse(v, ip);
	if (first && *first >> 4 == 6)
		return ipv6_parse(v, ip);
	return IP_NOT_IP;
}

bool ip_header_sum_right(const struct ip_packet *ip)
{
	return ip->version == 6 ||
	       checksum_fold(checksum_add(ip->header.data, ip->header.len)) == 0xffff;
}

bool ethernet_parse(struct view frame, uint16_t *ethertype, struct view *payload)
{
	size_t at = ETHERNET_ADDRESSES_LEN;

	for (int tags = 0;; tags++) {
		const uint8_t *type = view_at(frame, at, 2);

		if (!type)
			return false;
		*ethertype = load_be16(type);
		if (tags == VLAN_TAGS_MAX ||
		    (*ethertype != ETHERTYPE_VLAN && *ethertype != ETHERTYPE_QINQ))
			return view_skip(frame, at + 2, payload);
		at += VLAN_TAG_LEN;
	}
}
