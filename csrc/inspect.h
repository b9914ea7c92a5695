/* SPDX-License-Identifier: MIT */
#ifndef CSUMFIX_INSPECT_H
#define CSUMFIX_INSPECT_H

#include "inner.h"
#include "outer.h"

enum inspect_check {
	INSPECT_NONE, /* the packet could not be judged: see struct inspection's status */
	INSPECT_RIGHT,
	INSPECT_WRONG,
	INSPECT_ZERO, /* "not computed" */
};

/**
 * struct inspection - all that can be told about one tunnel packet, for people to read
 * @status:   OUTER_OK, or why nothing else is filled in
 * @check:    what the outer checksum is
 * @found:    the outer checksum field, host order
 * @expected: what it should be, host order
 * @source, @dest: outer UDP ports, host order
 * @vni:      VXLAN network identifier
 * @inner:    what the inner checksums say
 * @inner_found, @inner_expected: the inner transport checksum, host order; both 0 if there is none
 */
struct inspection {
	enum outer_status status;
	enum inspect_check check;
	uint16_t found;
	uint16_t expected;
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
