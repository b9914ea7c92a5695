/* SPDX-License-Identifier: MIT */
#ifndef CSUMFIX_OUTER_H
#define CSUMFIX_OUTER_H

#include "checksum.h"
#include "packet.h"

/** enum outer_status - why a packet is no VXLAN packet whose outer checksum can be judged */
enum outer_status {
	OUTER_OK, /* it is one */
	OUTER_NOT_IP,
	OUTER_MALFORMED_IP,
	OUTER_FRAGMENT,
	OUTER_REROUTED, /* by a source route or the like: the checksum covers other addresses */
	OUTER_NOT_UDP,
	OUTER_MALFORMED_UDP,
	OUTER_OTHER_PORT,
	OUTER_NOT_VXLAN,

	OUTER_STATUSES, /* how many there are */
};

enum { OUTER_PORT_WORDS = 65536 / 64 };

/**
 * struct outer_ports - the UDP destination ports that carry VXLAN; all zero means any port
 * @named: some ports were added, so all others are refused
 * @bits:  one for each port
 */
struct outer_ports {
	bool named;
	uint64_t bits[OUTER_PORT_WORDS];
};

/** outer_ports_add() - let @port, in host order, carry VXLAN */
static inline void outer_ports_add(struct outer_ports *ports, uint16_t port)
{
	ports->named = true;
	ports->bits[port / 64] |= (uint64_t)1 << port % 64;
}

/** outer_ports_have() - may @port, in host order, carry VXLAN? */
static inline bool outer_ports_have(const struct outer_ports *ports, uint16_t port)
{
	return ports->bits[port / 64] >> port % 64 & 1 || !ports->named;
}

/**
 * struct outer_packet - a tunnel packet taken apart
 * @ip, @udp, @vxlan: its layers
 * @check:    the outer UDP checksum field, in memory order
 * @sum:      raw sum of pseudo-header and datagram with @check taken as 0
 */
struct outer_packet {
	struct ip_packet ip;
	struct udp_packet udp;
	struct vxlan_packet vxlan;
	uint16_t check;
	uint64_t sum;
};

/** outer_parse() - take apart @v, an IP packet; reads no payload bytes, so @sum is 0 */
enum outer_status outer_parse(struct view v, const struct outer_ports *ports,
			      struct outer_packet *outer);

/** outer_parse_geneve() - the same for a Geneve packet, which @vxlan of @outer then describes */
enum outer_status outer_parse_geneve(struct view v, const struct outer_ports *ports,
				     struct outer_packet *outer);

/** outer_sum() - fill in @sum: the one pass over all bytes of the datagram */
void outer_sum(struct outer_packet *outer);

/** outer_check_right() - is the checksum field, which is not 0, right? needs outer_sum() */
static inline bool outer_check_right(const struct outer_packet *outer)
{
	return checksum_fold(outer->sum + outer->check) == 0xffff;
}

/** outer_check_expected() - the right checksum field, in memory order, never 0 (RFC 768) */
uint16_t outer_check_expected(const struct outer_packet *outer);

#endif
