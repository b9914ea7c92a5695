/* SPDX-License-Identifier: MIT */
#include "repair.h"

#include "inner.h"

#include <string.h>

/* An entry that is missing has no name, and csumfix.core cannot be imported. */
static const struct {
	const char *name;
	enum repair_outcome outcome;
} reasons[REPAIR_REASONS] = {
	[REPAIR_RIGHT] = { "right", REPAIR_VERIFIED },
	[REPAIR_ZERO_KEPT] = { "zero_kept", REPAIR_NOT_JUDGED },
	[REPAIR_RECOMPUTED] = { "recomputed", REPAIR_REPAIRED },
	[REPAIR_RECOMPUTED_UNPROVEN] = { "recomputed_unproven", REPAIR_REPAIRED },
	[REPAIR_ZERO_FILLED] = { "zero_filled", REPAIR_FILLED },
	[REPAIR_INNER_CORRUPT] = { "inner_corrupt", REPAIR_LEFT_WRONG },
	[REPAIR_INNER_PARTIAL] = { "inner_partial", REPAIR_LEFT_WRONG },
	[REPAIR_INNER_MALFORMED] = { "inner_malformed", REPAIR_LEFT_WRONG },
	[REPAIR_INNER_UNKNOWN] = { "inner_unknown", REPAIR_LEFT_WRONG },
	[REPAIR_TRUNCATED] = { "truncated", REPAIR_NOT_JUDGED },
	[REPAIR_NO_HEADROOM] = { "no_headroom", REPAIR_NOT_JUDGED },
	[REPAIR_PARTIAL] = { "partial", REPAIR_NOT_JUDGED },
	[REPAIR_NOT_IP] = { "not_ip", REPAIR_NOT_JUDGED },
	[REPAIR_MALFORMED_IP] = { "malformed_ip", REPAIR_NOT_JUDGED },
	[REPAIR_FRAGMENT] = { "fragment", REPAIR_NOT_JUDGED },
	[REPAIR_REROUTED] = { "rerouted", REPAIR_NOT_JUDGED },
	[REPAIR_NOT_UDP] = { "not_udp", REPAIR_NOT_JUDGED },
	[REPAIR_MALFORMED_UDP] = { "malformed_udp", REPAIR_NOT_JUDGED },
	[REPAIR_OTHER_PORT] = { "other_port", REPAIR_NOT_JUDGED },
	[REPAIR_NOT_VXLAN] = { "not_vxlan", REPAIR_NOT_JUDGED },
	[REPAIR_NOT_GENEVE] = { "not_geneve", REPAIR_NOT_JUDGED },
};

/* No default case: the compiler reports a status without a reason. */
static enum repair_reason reason_not_to_judge(enum outer_status status)
{
	switch (status) {
	case OUTER_NOT_IP:
		return REPAIR_NOT_IP;
	case OUTER_MALFORMED_IP:
		return REPAIR_MALFORMED_IP;
	case OUTER_FRAGMENT:
		return REPAIR_FRAGMENT;
	case OUTER_REROUTED:
		return REPAIR_REROUTED;
	case OUTER_NOT_UDP:
		return REPAIR_NOT_UDP;
	case OUTER_MALFORMED_UDP:
		return REPAIR_MALFORMED_UDP;
	case OUTER_OTHER_PORT:
		return REPAIR_OTHER_PORT;
	case OUTER_NOT_GENEVE:
		return REPAIR_NOT_GENEVE;
	case OUTER_NOT_VXLAN:
	case OUTER_OK:
	case OUTER_STATUSES:
		break;
	}
	return REPAIR_NOT_VXLAN;
}

static struct repair_result accept_because(enum repair_reason reason, uint16_t port)
{
	return (struct repair_result){ REPAIR_ACCEPT, reason, port };
}

/* The destination port, if outer_parse() got so far as to find it among the policy's. */
static uint16_t known_port(enum outer_status status, const struct outer_packet *outer)
{
	bool known = status == OUTER_OK || status == OUTER_NOT_VXLAN || status == OUTER_NOT_GENEVE;

	return known ? outer->udp.dest : 0;
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
	case INNER_UNKNOWN: /* and 0 is legal over anything */
		return was_zero ? REPAIR_ZERO_KEPT : REPAIR_INNER_UNKNOWN;
	case INNER_RIGHT:
		return was_zero ? REPAIR_ZERO_FILLED : REPAIR_RECOMPUTED;
	case INNER_UNPROVEN:
	default:
		return was_zero ? REPAIR_ZERO_FILLED : REPAIR_RECOMPUTED_UNPROVEN;
	}
}

static bool is_write(enum repair_reason reason)
{
	enum repair_outcome outcome = repair_outcome(reason);

	return outcome == REPAIR_REPAIRED || outcome == REPAIR_FILLED;
}

static struct repair_result write_check(uint8_t *packet, const struct outer_packet *outer)
{
	enum repair_reason reason =
	    reason_to_write(inner_check(&outer->tunnel).state, !outer->check);
	size_t at = (size_t)(outer->udp.datagram.data - packet) + UDP_CHECK_OFFSET;
	uint16_t check = outer_check_expected(outer);

	if (!is_write(reason))
		return accept_because(reason, outer->udp.dest);
	memcpy(packet + at, &check, sizeof(check));
	return (struct repair_result){ REPAIR_REPLACE, reason, outer->udp.dest };
}

struct repair_result repair(uint8_t *packet, size_t caplen, size_t wirelen, bool partial,
			    bool replaceable, const struct repair_policy *policy)
{
	struct outer_packet outer;
	enum outer_status status;

	if (caplen < wirelen)
		return accept_because(REPAIR_TRUNCATED, 0);
	if (!replaceable)
		return accept_because(REPAIR_NO_HEADROOM, 0);
	if (partial)
		return accept_because(REPAIR_PARTIAL, 0);
	status = outer_parse((struct view){ packet, caplen }, &policy->ports, &outer);
	if (status != OUTER_OK)
		return accept_because(reason_not_to_judge(status), known_port(status, &outer));
	if (!outer.check && !policy->fill_zero)
		return accept_because(REPAIR_ZERO_KEPT, outer.udp.dest);
	outer_sum(&outer);
	if (outer.check && outer_check_right(&outer))
		return accept_because(REPAIR_RIGHT, outer.udp.dest);
	return write_check(packet, &outer);
}

enum repair_outcome repair_outcome(enum repair_reason reason)
{
	return reasons[reason].outcome;
}

const char *repair_reason_name(enum repair_reason reason)
{
	return (unsigned int)reason < REPAIR_REASONS ? reasons[reason].name : NULL;
}
