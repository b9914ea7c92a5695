/* SPDX-License-Identifier: MIT */
#ifndef CSUMFIX_INNER_H
#define CSUMFIX_INNER_H

#include "packet.h"

/** enum inner_state - what the inner packet's own checksums say about it */
enum inner_state {
	INNER_UNPROVEN,   /* no checksum that covers it: not IP, fragment, UDP with 0, other L4 */
	INNER_RIGHT,      /* every checksum that it has is right */
	INNER_CORRUPT,    /* a checksum is complete and wrong */
	INNER_UNFINISHED, /* the field holds the pseudo-header sum: offload never finished it */
	INNER_MALFORMED,  /* it ends before its own lengths say */
};

/**
 * inner_check() - verify the checksums of an encapsulated packet
 *
 * IPv4 header, TCP, UDP, ICMP and ICMPv6 are known; anything else is INNER_UNPROVEN, and so is
 * a packet whose checksum the tunnel itself left out (VXLAN-RCO).
 */
enum inner_state inner_check(const struct vxlan_packet *vxlan);

#endif
