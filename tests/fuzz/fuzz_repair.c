/* SPDX-License-Identifier: MIT */
/*
 * repair() and inspect() on any bytes: they must not crash, and their results must be true.
 *
 * The first byte of the input holds options (enum option), the rest is the packet.
 */
#include "fuzz.h"
#include "inspect.h"
#include "repair.h"
#include "fix_tunnel.h"

enum option {
	FILL_ZERO = 0x01,
	PARTIAL = 0x02,
	CUT = 0x04, /* the packet was not copied whole */
	PORTS_SHIFT = 3,
	BACKEND_SHIFT = 5,
	ODD_ADDRESS = 0x80,
};

static const struct outer_ports port_lists[] = {
	{ .named = false, .geneve = { PORT_BIT(GENEVE_PORT) } },
	BOTH_PORTS,
	{
	    .named = true,
	    .bits = { [0 ... OUTER_PORT_WORDS - 1] = UINT64_MAX },
	    .geneve = { [0 ... OUTER_PORT_WORDS - 1] = UINT64_MAX / 3 * 2 }, /* odd ports */
	},
	ONLY_PORT(4789),
};

/* checksum_choose() ignores backends that this CPU does not support. */
static const char *const backends[] = { "avx512", "avx2", "portable", "portable" };

/* The right outer checksum, by the reference implementation. */
static uint16_t plain_check(const uint8_t *packet, const struct ip_place *outer)
{
	const uint8_t *udp = packet + outer->l4;
	size_t len = get16(udp + 4);
	uint32_t sum = slow_pseudo(packet, UDP, len);

	sum = slow_sum(sum, udp, 6);
	sum = slow_sum(sum, udp + 8, len - 8);
	return sum == 0xffff ? 0xffff : (uint16_t)~sum;
}

/* By how much the field is off once a partial inner checksum has been computed. */
static unsigned int plain_difference(const struct inspection *seen)
{
	long off = (long)seen->found - seen->expected;

	if (seen->inner == INNER_PARTIAL)
		off -= (long)seen->inner_found - seen->inner_expected;
	return (unsigned int)((off + 2 * 65535L) % 65535);
}

static enum inspect_check plain_state(const struct inspection *seen, uint32_t pseudo)
{
	if (!seen->found)
		return INSPECT_ZERO;
	if (seen->found == seen->expected)
		return INSPECT_RIGHT;
	if (seen->found == pseudo)
		return INSPECT_PARTIAL;
	return plain_difference(seen) ? INSPECT_WRONG : INSPECT_LCO;
}

/* Compares the result of inspect() for the outer layer with the reference. */
static void check_inspection(const struct inspection *seen, const uint8_t *packet, size_t len)
{
	struct ip_place outer;

	if (seen->status != OUTER_OK) {
		CHECK(seen->check == INSPECT_NONE);
		return;
	}
	CHECK(find_ip(packet, len, 0, &outer) && outer.protocol == UDP);
	CHECK(seen->source == get16(packet + outer.l4));
	CHECK(seen->dest == get16(packet + outer.l4 + 2));
	CHECK(seen->found == get16(packet + outer.l4 + 6));
	CHECK(seen->expected == plain_check(packet, &outer));
	CHECK(seen->check ==
	      plain_state(seen, slow_pseudo(packet, UDP, get16(packet + outer.l4 + 4))));
	CHECK(seen->check != INSPECT_LCO || seen->inner == INNER_PARTIAL);
	CHECK(seen->difference == (seen->check == INSPECT_WRONG ? plain_difference(seen) : 0));
	CHECK(seen->inner < INNER_STATES);
}

static enum repair_reason reason_of_inner(enum inner_state inner, bool was_zero)
{
	switch (inner) {
	case INNER_CORRUPT:
		return REPAIR_INNER_CORRUPT;
	case INNER_PARTIAL:
		return REPAIR_INNER_PARTIAL;
	case INNER_MALFORMED:
		return REPAIR_INNER_MALFORMED;
	case INNER_UNKNOWN:
		return was_zero ? REPAIR_ZERO_KEPT : REPAIR_INNER_UNKNOWN;
	case INNER_RIGHT:
		return was_zero ? REPAIR_ZERO_FILLED : REPAIR_RECOMPUTED;
	default:
		return was_zero ? REPAIR_ZERO_FILLED : REPAIR_RECOMPUTED_UNPROVEN;
	}
}

/* The reason that repair() must return for a packet with this result of inspect(). */
static enum repair_reason reason_for(const struct inspection *seen, uint8_t options)
{
	if (options & CUT)
		return REPAIR_TRUNCATED;
	if (options & PARTIAL)
		return REPAIR_PARTIAL;
	if (seen->status != OUTER_OK) /* both enums list them in the same order */
		return REPAIR_NOT_IP + (seen->status - OUTER_NOT_IP);
	if (seen->check == INSPECT_RIGHT)
		return REPAIR_RIGHT;
	if (seen->check == INSPECT_ZERO && !(options & FILL_ZERO))
		return REPAIR_ZERO_KEPT;
	return reason_of_inner(seen->inner, seen->check == INSPECT_ZERO);
}

/* Checks that only the checksum field has changed, to the right value. */
static void check_replaced(const uint8_t *packet, const uint8_t *before, size_t len)
{
	struct ip_place outer;
	size_t field;

	CHECK(find_ip(before, len, 0, &outer));
	field = outer.l4 + 6;
	CHECK(!memcmp(packet, before, field));
	CHECK(!memcmp(packet + field + 2, before + field + 2, len - field - 2));
	CHECK(get16(packet + field) == plain_check(before, &outer));
	CHECK(get16(packet + field) != get16(before + field));
}

static bool is_write(enum repair_reason reason)
{
	return reason == REPAIR_RECOMPUTED || reason == REPAIR_RECOMPUTED_UNPROVEN ||
	       reason == REPAIR_ZERO_FILLED;
}

static void check_packet(uint8_t *packet, const uint8_t *before, size_t len, uint8_t options)
{
	const struct repair_policy policy = {
		.ports = port_lists[options >> PORTS_SHIFT & 3],
		.fill_zero = options & FILL_ZERO,
	};
	const size_t wirelen = options & CUT ? len + 1 : len;
	struct inspection seen = inspect((struct view){ packet, len }, &policy.ports);
	struct repair_result result;

	CHECK(!memcmp(packet, before, len));
	check_inspection(&seen, packet, len);
	result = repair(packet, len, wirelen, options & PARTIAL, true, &policy);
	CHECK(result.reason == reason_for(&seen, options));
	CHECK(repair_reason_name(result.reason));
	CHECK((result.verdict == REPAIR_REPLACE) == is_write(result.reason));
	if (result.verdict == REPAIR_ACCEPT) {
		CHECK(!memcmp(packet, before, len));
		return;
	}
	check_replaced(packet, before, len);
	result = repair(packet, len, wirelen, false, true, &policy);
	CHECK(result.verdict == REPAIR_ACCEPT && result.reason == REPAIR_RIGHT);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t options, *memory, *packet;
	size_t len, shift;

	if (!size)
		return 0;
	options = data[0];
	len = size - 1;
	shift = options & ODD_ADDRESS ? 1 : 0;
	checksum_choose(backends[options >> BACKEND_SHIFT & 3]);
	/* The packet ends where its memory does, so AddressSanitizer sees reads past its end. */
	memory = malloc(shift + len);
	CHECK(memory || !(shift + len));
	packet = memory + shift;
	memcpy(packet, data + 1, len);
	check_packet(packet, data + 1, len, options);
	free(memory);
	return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed)
{
	size = LLVMFuzzerMutate(data, size, max_size);
	if (size)
		fix_tunnel(data + 1, size - 1, seed);
	return size;
}
