/* SPDX-License-Identifier: MIT */
#ifndef CSUMFIX_INNER_H
#define CSUMFIX_INNER_H

#include "tunnel.h"

/** enum inner_state - what the inner packet's own checksums say about it */
enum inner_state {
	INNER_UNPROVEN,  /* no checksum covers it: not IP, fragment, UDP with 0, other L4 */
	INNER_RIGHT,     /* every checksum that it has is right */
	INNER_CORRUPT,   /* a checksum is complete and wrong */
	INNER_PARTIAL,   /* the field holds the pseudo-header sum (CHECKSUM_PARTIAL) */
	INNER_MALFORMED, /* it ends before its own lengths say */
	INNER_UNKNOWN,   /* nobody here knows what it is: see @ethertype of struct tunnel_packet */

	INNER_STATES, /* how many there are */
};

/**
 * struct inner_report - the state, and the transport checksum if there is one
 * @state: what the checksums say
 * @found, @expected: the checksum field, as it is and as it should be, in memory order
 */
struct inner_report {
	enum inner_state state;
	uint16_t found;
	uint16_t expected;
};

/**
 * inner_check() - verify the checksums of an encapsulated packet
 *
 * Checks the IPv4 header, TCP, UDP, ICMP and ICMPv6. Anything else is INNER_UNPROVEN, and so is
 * a packet whose checksum the sender left to the receiver (VXLAN-RCO).
 */
struct inner_report inner_check(const struct tunnel_packet *tunnel);

#endif
