/* SPDX-License-Identifier: MIT */
#ifndef CSUMFIX_TUNNEL_H
#define CSUMFIX_TUNNEL_H

#include "packet.h"

/** enum tunnel_protocol - what the UDP port of a tunnel carries; nothing in a packet tells it */
enum tunnel_protocol {
	TUNNEL_VXLAN,
	TUNNEL_GENEVE,
};

/**
 * struct tunnel_packet - the UDP payload of a tunnel packet taken apart
 * @vni:             network identifier, 24 bits
 * @remote_checksum: the sender left the inner checksum to the receiver (VXLAN-RCO)
 * @ethertype:       what @inner is: ETHERTYPE_BRIDGING, _IPV4 or _IPV6; ETHERTYPE_UNKNOWN if it is
 *                   something else, or if the header says something that is not known here
 * @inner:           the encapsulated frame or packet
 */
struct tunnel_packet {
	uint32_t vni;
	bool remote_checksum;
	uint16_t ethertype;
	struct view inner;
};

/**
 * tunnel_parse() - take apart the UDP payload @v
 *
 * VXLAN (RFC 7348): false if it is too short or has no valid VNI. Its extensions are known: group
 * policy, remote checksum offload and the GPE draft's next protocol.
 *
 * Geneve (RFC 8926): false if it is too short for its options, if these do not fill the place that
 * the header has for them, or if it is of another version. What the options say does not matter,
 * critical ones included: the protocol type alone tells what the payload is (3.4), and OVN, for
 * one, marks its option in every packet as critical.
 */
bool tunnel_parse(enum tunnel_protocol protocol, struct view v, struct tunnel_packet *tunnel);

#endif
