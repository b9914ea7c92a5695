/* SPDX-License-Identifier: MIT */
#ifndef CSUMFIX_INSPECT_H
#define CSUMFIX_INSPECT_H

#include "inner.h"
#include "outer.h"

/**
 * enum inspect_check - what an outer checksum is
 *
 * The sending host sees PARTIAL and LCO before its NIC has computed the checksums. There they are
 * not wrong; on the receiver they are.
 */
enum inspect_check {
	INSPECT_NONE, /* the packet could not be judged: see struct inspection's status */
	INSPECT_RIGHT,
	INSPECT_WRONG,
	INSPECT_ZERO, /* "not computed" */

	/* The field holds just the folded pseudo-header sum: CHECKSUM_PARTIAL of the outer header
	 * (include/linux/skbuff.h), or a GSO packet (udp_set_csum() in net/ipv4/udp.c). */
	INSPECT_PARTIAL,

	/* The inner checksum is partial, and inner and outer one are off by the same amount: local
	 * checksum offload. The outer one will be right once the inner one is computed
	 * (Documentation/networking/checksum-offloads.rst). */
	INSPECT_LCO,

	INSPECT_CHECKS, /* how many there are */
};

/**
 * struct inspection - what the checksums of one tunnel packet say
 * @status:     OUTER_OK, or why nothing else is filled in
 * @check:      what the outer checksum is
 * @found:      the outer checksum field, host order
 * @expected:   what it should be for the bytes as they are, host order
 * @difference: how much a wrong field is off, modulo 65,535: found minus expected, minus the
 *              same difference of the inner checksum if that is partial. After NAT to another
 *              port this is the new port minus the old one; a new address adds to it. 0 unless
 *              @check is INSPECT_WRONG
 * @source, @dest: outer UDP ports, host order
 * @vni:        network identifier
 * @inner:      what the inner checksums say
 * @inner_found, @inner_expected: the inner transport checksum, host order; both 0 if there is none
 */
struct inspection {
	enum outer_status status;
	enum inspect_check check;
	uint16_t found;
	uint16_t expected;
	uint16_t difference;
	uint16_t source;
	uint16_t dest;
	uint32_t vni;
	enum inner_state inner;
	uint16_t inner_found;
	uint16_t inner_expected;
};

/** inspect() - judge outer and inner checksums of the packet @v without touching it. Pure. */
struct inspection inspect(struct view v, const struct outer_ports *ports);

#endif
