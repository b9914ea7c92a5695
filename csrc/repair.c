/* SPDX-License-Identifier: MIT */
#include "repair.h"

#include "inner.h"

#include <string.h>

static const char *const reason_names[REPAIR_REASONS] = {
	[REPAIR_RIGHT] = "right",
	[REPAIR_ZERO_KEPT] = "zero_kept",
	[REPAIR_RECOMPUTED] = "recomputed",
	[REPAIR_RECOMPUTED_UNPROVEN] = "recomputed_unproven",
	[REPAIR_ZERO_FILLED] = "zero_filled",
	[REPAIR_INNER_CORRUPT] = "inner_corrupt",
	[REPAIR_INNER_PARTIAL] = "inner_partial",
	[REPAIR_INNER_MALFORMED] = "inner_malformed",
	[REPAIR_TRUNCATED] = "truncated",
	[REPAIR_PARTIAL] = "partial",
	[REPAIR_NOT_IP] = "not_ip",
	[REPAIR_MALFORMED_IP] = "malformed_ip",
	[REPAIR_FRAGMENT] = "fragment",
	[REPAIR_REROUTED] = "rerouted",
	[REPAIR_NOT_UDP] = "not_udp",
	[REPAIR_MALFORMED_UDP] = "malformed_udp",
	[REPAIR_OTHER_PORT] = "other_port",
	[REPAIR_NOT_VXLAN] = "not_vxlan",
};

static const enum repair_reason reason_of_outer[] = {
	[OUTER_NOT_IP] = REPAIR_NOT_IP,         [OUTER_MALFORMED_IP] = REPAIR_MALFORMED_IP,
	[OUTER_FRAGMENT] = REPAIR_FRAGMENT,     [OUTER_REROUTED] = REPAIR_REROUTED,
	[OUTER_NOT_UDP] = REPAIR_NOT_UDP,       [OUTER_MALFORMED_UDP] = REPAIR_MALFORMED_UDP,
	[OUTER_OTHER_PORT] = REPAIR_OTHER_PORT, [OUTER_NOT_VXLAN] = REPAIR_NOT_VXLAN,
};

static struct repair_result accept_because(enum repair_reason reason)
{
	return (struct repair_result){ REPAIR_ACCEPT, reason };
}

/* What becomes of a packet that needs a checksum, by what its inner packet proves. */
static enum repair_reason reason_to_write(enum inner_state inner, bool was_zero)
{
	switch (inner) {
	case INNER_CORRUPT:
		return REPAIR_INNER_CORRUPT;
	case INNER_PARTIAL:
		return REPAIR_INNER_PARTIAL;
	case INNER_MALFORMED:
		return REPAIR_INNER_MALFORMED;
	case INNER_RIGHT:
		return was_zero ? REPAIR_ZERO_FILLED : REPAIR_RECOMPUTED;
	case INNER_UNPROVEN:
	default:
		return was_zero ? REPAIR_ZERO_FILLED : REPAIR_RECOMPUTED_UNPROVEN;
	}
}

static bool is_write(enum repair_reason reason)
{
	return reason == REPAIR_RECOMPUTED || reason == REPAIR_RECOMPUTED_UNPROVEN ||
	       reason == REPAIR_ZERO_FILLED;
}

static struct repair_result write_check(uint8_t *packet, const struct outer_packet *outer)
{
	enum repair_reason reason =
	    reason_to_write(inner_check(&outer->vxlan).state, !outer->check);
	size_t at = (size_t)(outer->udp.datagram.data - packet) + UDP_CHECK_OFFSET;
	uint16_t check = outer_check_expected(outer);

	if (!is_write(reason))
		return accept_because(reason);
	memcpy(packet + at, &check, sizeof(check));
	return (struct repair_result){ REPAIR_REPLACE, reason };
}

struct repair_result repair(uint8_t *packet, size_t caplen, size_t wirelen, bool partial,
			    const struct repair_policy *policy)
{
	struct outer_packet outer;
	enum outer_status status;

	if (caplen < wirelen)
		return accept_because(REPAIR_TRUNCATED);
	if (partial)
		return accept_because(REPAIR_PARTIAL);
	status = outer_parse((struct view){ packet, caplen }, &policy->ports, &outer);
	if (status != OUTER_OK)
		return accept_because(reason_of_outer[status]);
	if (!outer.check && !policy->fill_zero)
		return accept_because(REPAIR_ZERO_KEPT);
	outer_sum(&outer);
	if (outer.check && outer_check_right(&outer))
		return accept_because(REPAIR_RIGHT);
	return write_check(packet, &outer);
}

const char *repair_reason_name(enum repair_reason reason)
{
	return (unsigned int)reason < REPAIR_REASONS ? reason_names[reason] : NULL;
}
