/* SPDX-License-Identifier: MIT */
#include "inspect.h"

static uint16_t host_order(uint16_t in_memory)
{
	return load_be16((const uint8_t *)&in_memory);
}

static enum inspect_check check_state(const struct outer_packet *outer)
{
	if (!outer->check)
		return INSPECT_ZERO;
	return outer_check_right(outer) ? INSPECT_RIGHT : INSPECT_WRONG;
}

struct inspection inspect(struct view v, const struct outer_ports *ports)
{
	struct outer_packet outer;
	enum outer_status status = outer_parse(v, ports, &outer);
	struct inner_report inner;

	if (status != OUTER_OK)
		return (struct inspection){ .status = status };
	outer_sum(&outer);
	inner = inner_check(&outer.vxlan);
	return (struct inspection){
		.status = OUTER_OK,
		.check = check_state(&outer),
		.found = host_order(outer.check),
		.expected = host_order(outer_check_expected(&outer)),
		.source = outer.udp.source,
		.dest = outer.udp.dest,
		.vni = outer.vxlan.vni,
		.inner = inner.state,
		.inner_found = host_order(inner.found),
		.inner_expected = host_order(inner.expected),
	};
}
