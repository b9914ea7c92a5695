/* SPDX-License-Identifier: MIT */
#include "inspect.h"

/* One's complement is arithmetic modulo this number, in which 0 and 0xffff are the same. */
enum { MODULUS = 0xffff };

static unsigned int minus(unsigned int a, unsigned int b)
{
	return (a + MODULUS - b % MODULUS) % MODULUS;
}

/* How much the outer field will be off once the inner checksum is computed. Adding to a field that
 * the outer checksum covers subtracts the same from the right outer checksum. */
static uint16_t difference(const struct inspection *seen)
{
	unsigned int outer = minus(seen->found, seen->expected);
	unsigned int inner = minus(seen->inner_found, seen->inner_expected);

	return (uint16_t)minus(outer, seen->inner == INNER_PARTIAL ? inner : 0);
}

/* Comparing is enough: neither the folded sum nor a computed field is ever 0. */
static bool holds_pseudo_sum(const struct outer_packet *outer)
{
	return outer->check == checksum_fold(pseudo_sum(&outer->ip, outer->udp.datagram.len));
}

static enum inspect_check check_state(const struct outer_packet *outer, enum inner_state inner,
				      uint16_t off)
{
	if (!outer->check)
		return INSPECT_ZERO;
	if (outer_check_right(outer))
		return INSPECT_RIGHT;
	if (holds_pseudo_sum(outer))
		return INSPECT_PARTIAL;
	return inner == INNER_PARTIAL && !off ? INSPECT_LCO : INSPECT_WRONG;
}

static void judge(struct outer_packet *outer, struct inspection *seen)
{
	struct inner_report inner = inner_check(&outer->tunnel);
	uint16_t off;

	outer_sum(outer);
	seen->found = ntohs(outer->check);
	seen->expected = ntohs(outer_check_expected(outer));
	seen->source = outer->udp.source;
	seen->dest = outer->udp.dest;
	seen->vni = outer->tunnel.vni;
	seen->inner = inner.state;
	seen->inner_found = ntohs(inner.found);
	seen->inner_expected = ntohs(inner.expected);
	off = difference(seen);
	seen->check = check_state(outer, inner.state, off);
	seen->difference = seen->check == INSPECT_WRONG ? off : 0;
}

struct inspection inspect(struct view v, const struct outer_ports *ports)
{
	struct outer_packet outer;
	struct inspection seen = { .status = outer_parse(v, ports, &outer) };

	if (seen.status == OUTER_OK)
		judge(&outer, &seen);
	return seen;
}
