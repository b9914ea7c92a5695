/* SPDX-License-Identifier: MIT */
#ifndef CSUMFIX_OUTER_H
#define CSUMFIX_OUTER_H

#include "checksum.h"
#include "tunnel.h"

/** enum outer_status - why a packet is no tunnel packet whose outer checksum can be judged */
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
	OUTER_NOT_GENEVE,

	OUTER_STATUSES, /* how many there are */
};

enum { OUTER_PORT_WORDS = 65536 / 64 };

/**
 * struct outer_ports - the UDP destination ports of tunnels; all zero means that any port is one
 * @named:  some ports were added, so all others are refused
 * @bits:   one for each port
 * @geneve: the same: those that carry Geneve, if they are tunnels' at all; others carry VXLAN
 */
struct outer_ports {
	bool named;
	uint64_t bits[OUTER_PORT_WORDS];
	uint64_t geneve[OUTER_PORT_WORDS];
};

static inline void outer_set_bit(uint64_t *bits, uint16_t port)
{
	bits[port / 64] |= (uint64_t)1 << port % 64;
}

static inline bool outer_has_bit(const uint64_t *bits, uint16_t port)
{
	return bits[port / 64] >> port % 64 & 1;
}

/** outer_ports_add() - let @port, in host order, be a tunnel's */
static inline void outer_ports_add(struct outer_ports *ports, uint16_t port)
{
	ports->named = true;
	outer_set_bit(ports->bits, port);
}

/** outer_ports_set_geneve() - if @port, in host order, is a tunnel's, it carries Geneve */
static inline void outer_ports_set_geneve(struct outer_ports *ports, uint16_t port)
{
	outer_set_bit(ports->geneve, port);
}

/** outer_ports_have() - may @port, in host order, be a tunnel's? */
static inline bool outer_ports_have(const struct outer_ports *ports, uint16_t port)
{
	return outer_has_bit(ports->bits, port) || !ports->named;
}

/** outer_ports_protocol() - what the tunnel with @port, in host order, carries */
static inline enum tunnel_protocol outer_ports_protocol(const struct outer_ports *ports,
							uint16_t port)
{
	return outer_has_bit(ports->geneve, port) ? TUNNEL_GENEVE : TUNNEL_VXLAN;
}

/**
 * struct outer_packet - a tunnel packet taken apart
 * @ip, @udp, @tunnel: its layers
 * @check:    the outer UDP checksum field, in memory order
 * @sum:      raw sum of pseudo-header and datagram with @check taken as 0
 */
struct outer_packet {
	struct ip_packet ip;
	struct udp_packet udp;
	struct tunnel_packet tunnel;
	uint16_t check;
	uint64_t sum;
};

/** outer_parse() - take apart @v, an IP packet; reads no payload bytes, so @sum is 0 */
enum outer_status outer_parse(struct view v, const struct outer_ports *ports,
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
