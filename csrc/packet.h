/* SPDX-License-Identifier: MIT */
#ifndef CSUMFIX_PACKET_H
#define CSUMFIX_PACKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <arpa/inet.h>

/*
 * Packet headers, and the bounds check that every read of packet bytes passes.
 *
 * The sender of a packet chooses its bytes, and we run privileged. Nothing here trusts a length
 * field before view_at() or view_cut() has compared it with the bytes that are there.
 */

/** struct view - @len readable bytes at @data */
struct view {
	const uint8_t *data;
	size_t len;
};

/** view_at() - the bounds check: pointer to @need bytes at @offset of @v, or NULL */
static inline const uint8_t *view_at(struct view v, size_t offset, size_t need)
{
	if (offset > v.len || need > v.len - offset)
		return NULL;
	return v.data + offset;
}

/** view_cut() - set @out to @len bytes at @offset of @v; false if they are not all there */
static inline bool view_cut(struct view v, size_t offset, size_t len, struct view *out)
{
	const uint8_t *start = view_at(v, offset, len);

	if (!start)
		return false;
	*out = (struct view){ start, len };
	return true;
}

/** view_skip() - set @out to @v without its first @offset bytes; false if it is shorter */
static inline bool view_skip(struct view v, size_t offset, struct view *out)
{
	return offset <= v.len && view_cut(v, offset, v.len - offset, out);
}

/** load_be16() - big-endian 16-bit number at @p, any alignment */
static inline uint16_t load_be16(const uint8_t *p)
{
	return (uint16_t)(p[0] << 8 | p[1]);
}

/** load_be32() - big-endian 32-bit number at @p, any alignment */
static inline uint32_t load_be32(const uint8_t *p)
{
	return (uint32_t)load_be16(p) << 16 | load_be16(p + 2);
}

enum {
	PROTO_ICMP = 1,
	PROTO_TCP = 6,
	PROTO_UDP = 17,
	PROTO_ICMPV6 = 58,
};

enum {
	ETHERTYPE_IPV4 = 0x0800,
	ETHERTYPE_IPV6 = 0x86dd,
	ETHERTYPE_BRIDGING = 0x6558, /* a whole Ethernet frame follows (RFC 1701) */
	ETHERTYPE_UNKNOWN = 0xffff,  /* reserved; here: a payload that we cannot check */
};

enum {
	UDP_HEADER_LEN = 8,
	UDP_CHECK_OFFSET = 6,
	TCP_HEADER_LEN = 20,
	TCP_CHECK_OFFSET = 16,
	ICMP_HEADER_LEN = 4,
	ICMP_CHECK_OFFSET = 2,
};

enum ip_status {
	IP_OK,
	IP_NOT_IP,    /* version is neither 4 nor 6, or there is no first byte */
	IP_MALFORMED, /* a header or the packet ends before its length says */
};

/**
 * struct ip_packet - an IPv4 or IPv6 packet taken apart
 * @version:         4 or 6
 * @protocol:        of @payload: the last header reached for IPv6
 * @fragment:        it is a fragment, so @payload is not a whole transport packet
 * @rerouted:        a source route, routing header or home address hides the addresses that the
 *                   transport checksum covers: it cannot be verified here
 * @header:          the first header, with IPv4 options, without IPv6 extensions
 * @pseudo:          raw sum of the pseudo-header without its length (RFC 768, RFC 8200 8.1)
 * @payload:         what follows the IP headers, cut to the IP packet's own length
 */
struct ip_packet {
	uint8_t version;
	uint8_t protocol;
	bool fragment;
	bool rerouted;
	uint64_t pseudo;
	struct view header;
	struct view payload;
};

/** ip_parse() - take apart the IP packet that begins at the start of @v into @ip */
enum ip_status ip_parse(struct view v, struct ip_packet *ip);

/** ip_header_sum_right() - is the IPv4 header checksum right? IPv6 has none: true */
bool ip_header_sum_right(const struct ip_packet *ip);

/** pseudo_sum() - raw sum of @ip's whole pseudo-header for a transport length in bytes */
static inline uint64_t pseudo_sum(const struct ip_packet *ip, size_t transport_len)
{
	return ip->pseudo + htons(ip->protocol) + htons((uint16_t)transport_len);
}

/**
 * struct udp_packet - a UDP datagram
 * @source:   port, host order
 * @dest:     port, host order
 * @datagram: header and payload, cut to the UDP length
 */
struct udp_packet {
	uint16_t source;
	uint16_t dest;
	struct view datagram;
};

/** udp_parse() - take apart @v; false if it is shorter than its header or its length field */
static inline bool udp_parse(struct view v, struct udp_packet *udp)
{
	const uint8_t *header = view_at(v, 0, UDP_HEADER_LEN);

	if (!header || load_be16(header + 4) < UDP_HEADER_LEN ||
	    !view_cut(v, 0, load_be16(header + 4), &udp->datagram))
		return false;
	udp->source = load_be16(header);
	udp->dest = load_be16(header + 2);
	return true;
}

/**
 * ethernet_parse() - find what an Ethernet frame carries
 * @frame:     from the destination address on, without FCS
 * @ethertype: set to the type behind up to two VLAN tags (802.1Q, QinQ)
 * @payload:   set to the bytes behind that type
 *
 * Return: false if the frame ends before that.
 */
bool ethernet_parse(struct view frame, uint16_t *ethertype, struct view *payload);

#endif
