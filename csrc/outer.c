/* SPDX-License-Identifier: MIT */
#include "outer.h"

#include <string.h>

static enum outer_status ip_layer(struct view v, struct ip_packet *ip)
{
	enum ip_status status = ip_parse(v, ip);

	if (status != IP_OK)
		return status == IP_NOT_IP ? OUTER_NOT_IP : OUTER_MALFORMED_IP;
	if (ip->fragment)
		return OUTER_FRAGMENT;
	if (ip->protocol != PROTO_UDP)
		return OUTER_NOT_UDP;
	return ip->rerouted ? OUTER_REROUTED : OUTER_OK;
}

enum outer_status outer_parse(struct view v, const struct outer_ports *ports,
			      struct outer_packet *outer)
{
	enum outer_status status = ip_layer(v, &outer->ip);
	enum tunnel_protocol protocol;
	struct view payload;

	if (status != OUTER_OK)
		return status;
	if (!udp_parse(outer->ip.payload, &outer->udp))
		return OUTER_MALFORMED_UDP;
	if (!outer_ports_have(ports, outer->udp.dest))
		return OUTER_OTHER_PORT;
	protocol = outer_ports_protocol(ports, outer->udp.dest);
	if (!view_skip(outer->udp.datagram, UDP_HEADER_LEN, &payload) ||
	    !tunnel_parse(protocol, payload, &outer->tunnel))
		return protocol == TUNNEL_GENEVE ? OUTER_NOT_GENEVE : OUTER_NOT_VXLAN;
	memcpy(&outer->check, outer->udp.datagram.data + UDP_CHECK_OFFSET, sizeof(outer->check));
	outer->sum = 0;
	return OUTER_OK;
}

void outer_sum(struct outer_packet *outer)
{
	struct view datagram = outer->udp.datagram;

	/* The total contains the field, at the weight 1 or 65,536, which are the same modulo
	 * 65,535. Subtracting it once cannot underflow and leaves the sum of everything else. */
	outer->sum = pseudo_sum(&outer->ip, datagram.len) +
		     checksum_add(datagram.data, datagram.len) - outer->check;
}

uint16_t outer_check_expected(const struct outer_packet *outer)
{
	uint16_t check = checksum_finish(outer->sum);

	return check ? check : 0xffff;
}
