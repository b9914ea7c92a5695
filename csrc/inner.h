/* SPDX-License-Identifier: MIT */
#ifndef CSUMFIX_INNER_H
#define CSUMFIX_INNER_H

#include "packet.h"

/** enum inner_state - what the inner packet's own checksums say about it */
enum inner_state {
	INNER_UNPROVEN,  /* no checksum that covers it: not IP, fragment, UDP with 0, other L4 */
	INNER_RIGHT,     /* every checksum that it has is right */
	INNER_CORRUPT,   /* a checksum is complete and wrong */
	INNER_PARTIAL,   /* the field holds the pseudo-header sum: offload never finished it */
	INNER_MALFORMED, /* it ends before its own lengths say */

	INNER_STATES, /* how many there are */
};

/**
 * struct inner_report - the state, and for a transport checksum that was computed, the numbers
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
 * IPv4 header, TCP, UDP, ICMP and ICMPv6 are known; anything else is INNER_UNPROVEN, and so is
 * a packet whose checksum the tunnel itself left out (VXLAN-RCO).
 */
struct inner_report inner_check(const struct vxlan_packet *vxlan);

#endif
