/* SPDX-License-Identifier: MIT */
#include "inner.h"

#include "checksum.h"

#include <string.h>

/*
 * Judge @data, whose checksum field lies at @check_offset, with the raw pseudo-header sum
 * @pseudo (0 where the protocol has none). CHECKSUM_PARTIAL leaves exactly the folded
 * pseudo-header sum in the field (include/linux/skbuff.h).
 */
static enum inner_state judge(struct view data, size_t check_offset, uint64_t pseudo)
{
	uint16_t found;

	if (checksum_fold(pseudo + checksum_add(data.data, data.len)) == 0xffff)
		return INNER_RIGHT;
	memcpy(&found, data.data + check_offset, sizeof(found));
	if (pseudo && found == checksum_fold(pseudo))
		return INNER_UNFINISHED;
	return INNER_CORRUPT;
}

static enum inner_state tcp_check(const struct ip_packet *ip)
{
	struct view segment = ip->payload;

	if (segment.len < TCP_HEADER_LEN)
		return INNER_MALFORMED;
	return judge(segment, TCP_CHECK_OFFSET, pseudo_sum(ip, segment.len));
}

static enum inner_state udp_check(const struct ip_packet *ip)
{
	struct udp_packet udp;

	if (!udp_parse(ip->payload, &udp))
		return INNER_MALFORMED;
	if (!load_be16(udp.datagram.data + UDP_CHECK_OFFSET))
		return INNER_UNPROVEN;
	return judge(udp.datagram, UDP_CHECK_OFFSET, pseudo_sum(ip, udp.datagram.len));
}

static enum inner_state icmp_check(const struct ip_packet *ip)
{
	struct view message = ip->payload;
	uint64_t pseudo = ip->protocol == PROTO_ICMPV6 ? pseudo_sum(ip, message.len) : 0;

	if (message.len < ICMP_HEADER_LEN)
		return INNER_MALFORMED;
	return judge(message, ICMP_CHECK_OFFSET, pseudo);
}

static enum inner_state transport_check(const struct ip_packet *ip)
{
	if (ip->fragment || ip->rerouted)
		return INNER_UNPROVEN;
	switch (ip->protocol) {
	case PROTO_TCP:
		return tcp_check(ip);
	case PROTO_UDP:
		return udp_check(ip);
	case PROTO_ICMP:
		return ip->version == 4 ? icmp_check(ip) : INNER_UNPROVEN;
	case PROTO_ICMPV6:
		return ip->version == 6 ? icmp_check(ip) : INNER_UNPROVEN;
	default:
		return INNER_UNPROVEN;
	}
}

enum inner_state inner_check(const struct vxlan_packet *vxlan)
{
	uint16_t ethertype = vxlan->ethertype;
	struct view payload = vxlan->inner;
	struct ip_packet ip;

	if (vxlan->remote_checksum)
		return INNER_UNPROVEN;
	if (ethertype == ETHERTYPE_BRIDGING && !ethernet_parse(payload, &ethertype, &payload))
		return INNER_MALFORMED;
	if (ethertype != ETHERTYPE_IPV4 && ethertype != ETHERTYPE_IPV6)
		return INNER_UNPROVEN;
	if (ip_parse(payload, &ip) != IP_OK)
		return INNER_MALFORMED;
	return ip.header_sum_ok ? transport_check(&ip) : INNER_CORRUPT;
}
