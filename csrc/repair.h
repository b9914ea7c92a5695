/* SPDX-License-Identifier: MIT */
#ifndef CSUMFIX_REPAIR_H
#define CSUMFIX_REPAIR_H

#include "outer.h"

enum repair_verdict {
	REPAIR_ACCEPT,  /* as it is */
	REPAIR_REPLACE, /* the checksum field was written: return the packet with its payload */
};

/** enum repair_outcome - what became of the outer checksum: groups of enum repair_reason */
enum repair_outcome {
	REPAIR_VERIFIED,   /* it is right */
	REPAIR_REPAIRED,   /* it was wrong and is right now */
	REPAIR_FILLED,     /* it was 0 and is right now */
	REPAIR_LEFT_WRONG, /* it is wrong, or 0 over a broken inner packet, and stays so */
	REPAIR_NOT_JUDGED, /* it is unchanged, and nobody verified it */

	REPAIR_OUTCOMES, /* how many there are */
};

/** enum repair_reason - why repair() returned its verdict; each packet has exactly one reason */
enum repair_reason {
	/* The outer checksum needs nothing. */
	REPAIR_RIGHT, /* verified */
	/* 0, "not computed": the policy keeps it, or nobody can check what the tunnel carries. */
	REPAIR_ZERO_KEPT,

	/* It was written: the verdict is REPAIR_REPLACE. */
	REPAIR_RECOMPUTED,          /* wrong, over an inner packet that proves itself whole */
	REPAIR_RECOMPUTED_UNPROVEN, /* wrong, over an inner packet without a checksum of its own */
	REPAIR_ZERO_FILLED,         /* 0, and the policy fills it */

	/* It is wrong or 0, and a new one would hide that the inner packet is broken. */
	REPAIR_INNER_CORRUPT,
	REPAIR_INNER_PARTIAL,
	REPAIR_INNER_MALFORMED,
	/* It is wrong, and nobody here can check what a new one might hide. */
	REPAIR_INNER_UNKNOWN,

	/* Nothing could be judged. */
	REPAIR_TRUNCATED,   /* not copied whole from the kernel */
	REPAIR_NO_HEADROOM, /* cannot be replaced: see @replaceable of repair() */
	REPAIR_PARTIAL,     /* the kernel says that its checksum is not computed yet */
	REPAIR_NOT_IP,
	REPAIR_MALFORMED_IP,
	REPAIR_FRAGMENT,
	REPAIR_REROUTED,
	REPAIR_NOT_UDP,
	REPAIR_MALFORMED_UDP,
	REPAIR_OTHER_PORT,
	REPAIR_NOT_VXLAN,
	REPAIR_NOT_GENEVE,

	REPAIR_REASONS, /* how many there are */
};

/**
 * struct repair_policy - what to repair
 * @ports:     destination ports that are tunnels', and what they carry
 * @fill_zero: compute an outer checksum that was sent as 0, which is legal over IPv4 (RFC 7348)
 *             and, where the receiver agreed, over IPv6 (RFC 6935)
 */
struct repair_policy {
	struct outer_ports ports;
	bool fill_zero;
};

/**
 * struct repair_result - verdict, and the reason for it
 * @port: UDP destination port, host order, if it was read and is one of the policy's; else 0
 */
struct repair_result {
	enum repair_verdict verdict;
	enum repair_reason reason;
	uint16_t port;
};

/**
 * repair() - verify and repair the outer UDP checksum of one packet
 * @packet:      the packet from its outer IP header on; at most two bytes of it are written
 * @caplen:      bytes at @packet
 * @wirelen:     bytes the packet really has; more than @caplen if it was not copied whole
 * @partial:     the kernel has yet to compute the packet's checksum or to segment it
 * @replaceable: the caller can return the packet with another payload
 * @policy:      see struct repair_policy
 *
 * Pure: no system call, no allocation, no state. Any bytes are acceptable input.
 * Unless the verdict is REPAIR_REPLACE, the packet is untouched.
 */
struct repair_result repair(uint8_t *packet, size_t caplen, size_t wirelen, bool partial,
			    bool replaceable, const struct repair_policy *policy);

/** repair_outcome() - what became of the outer checksum of a packet with this @reason */
enum repair_outcome repair_outcome(enum repair_reason reason);

/** repair_reason_name() - the reason as a lower-case word for counters, or NULL past the last */
const char *repair_reason_name(enum repair_reason reason);

#endif
