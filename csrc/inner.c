/* SPDX-License-Identifier: MIT */
#include "inner.h"

#include "checksum.h"

#include <string.h>

static struct inner_report only(enum inner_state state)
{
	return (struct inner_report){ .state = state };
}

/*
 * Judge @data, whose checksum field lies at @check_offset, with the raw pseudo-header sum
 * @pseudo (0 where the protocol has none). CHECKSUM_PARTIAL leaves exactly the folded
 * pseudo-header sum in the field (include/linux/skbuff.h).
 */
static struct inner_report judge(struct view data, size_t check_offset, uint64_t pseudo)
{
	struct inner_report report = { .state = INNER_CORRUPT };
	size_t behind = check_offset + sizeof(report.found);
	/* The field is left out, not subtracted: that would turn the sum of an ICMP message of
	 * zeros, 0, into the other zero of one's complement. */
	uint64_t rest = pseudo + checksum_add(data.data, check_offset) +
			checksum_add(data.data + behind, data.len - behind);

	memcpy(&report.found, data.data + check_offset, sizeof(report.found));
	report.expected = checksum_finish(rest);
	if (checksum_fold(rest + report.found) == 0xffff)
		report.state = INNER_RIGHT;
	else if (pseudo && report.found == checksum_fold(pseudo))
		report.state = INNER_PARTIAL;
	return report;
}

static struct inner_report tcp_check(const struct ip_packet *ip)
{
	struct view segment = ip->payload;

	if (segment.len < TCP_HEADER_LEN)
		return only(INNER_MALFORMED);
	return judge(segment, TCP_CHECK_OFFSET, pseudo_sum(ip, segment.len));
}

static struct inner_report udp_check(const struct ip_packet *ip)
{
	struct inner_report report;
	struct udp_packet udp;

	if (!udp_parse(ip->payload, &udp))
		return only(INNER_MALFORMED);
	if (!load_be16(udp.datagram.data + UDP_CHECK_OFFSET))
		return only(INNER_UNPROVEN);
	report = judge(udp.datagram, UDP_CHECK_OFFSET, pseudo_sum(ip, udp.datagram.len));
	if (!report.expected)
		report.expected = 0xffff; /* RFC 768: 0 means "not computed" */
	return report;
}

static struct inner_report icmp_check(const struct ip_packet *ip)
{
	struct view message = ip->payload;
	uint64_t pseudo = ip->protocol == PROTO_ICMPV6 ? pseudo_sum(ip, message.len) : 0;

	if (message.len < ICMP_HEADER_LEN)
		return only(INNER_MALFORMED);
	return judge(message, ICMP_CHECK_OFFSET, pseudo);
}

static struct inner_report transport_check(const struct ip_packet *ip)
{
	if (ip->fragment || ip->rerouted)
		return only(INNER_UNPROVEN);
	switch (ip->protocol) {
	case PROTO_TCP:
		return tcp_check(ip);
	case PROTO_UDP:
		return udp_check(ip);
	case PROTO_ICMP:
		return ip->version == 4 ? icmp_check(ip) : only(INNER_UNPROVEN);
	case PROTO_ICMPV6:
		return ip->version == 6 ? icmp_check(ip) : only(INNER_UNPROVEN);
	default:
		return only(INNER_UNPROVEN);
	}
}

struct inner_report inner_check(const struct tunnel_packet *tunnel)
{
	uint16_t ethertype = tunnel->ethertype;
	struct view payload = tunnel->inner;
	struct ip_packet ip;

	if (ethertype == ETHERTYPE_UNKNOWN)
		return only(INNER_UNKNOWN);
	if (tunnel->remote_checksum)
		return only(INNER_UNPROVEN);
	if (ethertype == ETHERTYPE_BRIDGING && !ethernet_parse(payload, &ethertype, &payload))
		return only(INNER_MALFORMED);
	if (ethertype != ETHERTYPE_IPV4 && ethertype != ETHERTYPE_IPV6)
		return only(INNER_UNPROVEN);
	if (ip_parse(payload, &ip) != IP_OK)
		return only(INNER_MALFORMED);
	return ip_header_sum_right(&ip) ? transport_check(&ip) : only(INNER_CORRUPT);
}
