/* SPDX-License-Identifier: MIT */
/* inspect(): the state of an outer checksum, and by how much a wrong one is off. */
#include "inspect.h"
#include "packets.h"

/* Any port is a tunnel's. */
static const struct outer_ports any_port = { .geneve = { PORT_BIT(GENEVE_PORT) } };

static struct inspection look(const struct packet *p)
{
	return inspect((struct view){ guard_behind(p->bytes, p->len), p->len }, &any_port);
}

/* Adds to a field as NAT does, in one's complement; a computed 0 is sent as 0xffff. */
static void add_to_check(struct packet *p, uint32_t number)
{
	uint8_t *field = p->bytes + p->udp + 6;

	put16(field, (get16(field) + number - 1) % 0xffff + 1);
}

static uint32_t outer_pseudo(const struct packet *p)
{
	return slow_pseudo(p->bytes, UDP, p->len - p->udp);
}

/* Makes the inner checksum partial; the outer one is right for the completed packet. */
static void make_inner_partial(struct packet *p, const struct shape *s)
{
	uint8_t *l4 = p->bytes + p->inner_l4;

	put16(l4 + check_offset(s->protocol),
	      slow_pseudo(p->bytes + p->inner_ip, s->protocol, p->len - p->inner_l4));
}

static const struct shape shapes[] = {
	{ 4, 0, 0, 4, 0, UDP, 5, false, 0 },     { 6, 0, 0, 4, 0, UDP, 0, false, 0 },
	{ 4, 8, 1, 6, 0, TCP, 40, false, 0 },    { 6, 8, 2, 6, 16, TCP, 7, false, 0 },
	{ 4, 0, 0, 6, 0, ICMPV6, 11, false, 0 }, { 4, 0, 0, 4, 0, UDP, 5, true, 0 },
	{ 6, 8, 1, 6, 0, TCP, 40, true, 12 },
};

static bool is(const struct packet *p, enum inspect_check check, unsigned int difference,
	       enum inner_state inner)
{
	struct inspection seen = look(p);

	return seen.status == OUTER_OK && seen.check == check && seen.difference == difference &&
	       seen.inner == inner;
}

static void complete_inside(const struct shape *s)
{
	struct packet right = build(s), p = right;

	CHECK(is(&p, INSPECT_RIGHT, 0, INNER_RIGHT));
	add_to_check(&p, 1234);
	CHECK(is(&p, INSPECT_WRONG, 1234, INNER_RIGHT));
	CHECK(look(&p).expected == get16(right.bytes + right.udp + 6));
	p = right;
	put16(p.bytes + p.udp + 6, 0);
	CHECK(is(&p, INSPECT_ZERO, 0, INNER_RIGHT));
	/* The outer checksum that the sender's kernel leaves to the NIC; the inner one is complete.
	 */
	put16(p.bytes + p.udp + 6, outer_pseudo(&p));
	CHECK(is(&p, INSPECT_PARTIAL, 0, INNER_RIGHT));
	add_to_check(&p, 1);
	CHECK(look(&p).check == INSPECT_WRONG);
}

static void partial_inside(const struct shape *s)
{
	struct packet lco = build(s), p;

	make_inner_partial(&lco, s);
	CHECK(is(&lco, INSPECT_LCO, 0, INNER_PARTIAL));
	for (uint32_t off = 1; off < 65535; off += 13) { /* passes both zeros */
		p = lco;
		add_to_check(&p, off);
		if (get16(p.bytes + p.udp + 6) == outer_pseudo(&p))
			CHECK(is(&p, INSPECT_PARTIAL, 0, INNER_PARTIAL));
		else if (look(&p).check != INSPECT_RIGHT)
			CHECK(is(&p, INSPECT_WRONG, off, INNER_PARTIAL));
	}
	p = lco;
	put16(p.bytes + p.udp + 6, outer_pseudo(&p)); /* as a GSO packet has it */
	CHECK(is(&p, INSPECT_PARTIAL, 0, INNER_PARTIAL));
	p = lco;
	put16(p.bytes + p.udp + 6, 0);
	CHECK(is(&p, INSPECT_ZERO, 0, INNER_PARTIAL));
	/* As a relay resends it: a right outer checksum over a partial inner one. */
	p = lco;
	set_outer_check(&p);
	CHECK(is(&p, INSPECT_RIGHT, 0, INNER_PARTIAL));
}

/* A new source port without an update of the checksum: the difference tells the old port. */
static void nat(const struct shape *s)
{
	static const uint16_t ports[] = { 1, 40001, 65535, SOURCE_PORT - 1 };

	for (size_t i = 0; i < COUNT_OF(ports); i++) {
		unsigned int difference = (ports[i] + 65535u - SOURCE_PORT) % 65535;
		struct packet p = build(s);

		put16(p.bytes + p.udp, ports[i]);
		CHECK(is(&p, INSPECT_WRONG, difference, INNER_RIGHT));
		make_inner_partial(&p, s);
		CHECK(is(&p, INSPECT_WRONG, difference, INNER_PARTIAL));
	}
}

/* 0xffff stands for a computed 0 (RFC 768): right where the computation gives 0. */
static void all_ones(void)
{
	static const struct shape arp = { 4, 0, 0, 0, 0, 0, 0, false, 0 };
	struct packet p = build(&arp);

	put16(p.bytes + p.len - 2, get16(p.bytes + p.udp + 6));
	put16(p.bytes + p.udp + 6, 0xffff);
	CHECK(is(&p, INSPECT_RIGHT, 0, INNER_UNPROVEN));
	put16(p.bytes + p.udp + 6, 1);
	CHECK(is(&p, INSPECT_WRONG, 1, INNER_UNPROVEN));
	put16(p.bytes + p.udp + 6, 0xfffe);
	CHECK(is(&p, INSPECT_WRONG, 0xfffe, INNER_UNPROVEN));
}

/* A corrupt inner packet is never taken for local checksum offload, whatever the differences. */
static void corrupt_inside(const struct shape *s)
{
	struct packet p = build(s);

	p.bytes[p.inner_l4 + check_offset(s->protocol)] ^= 0x10;
	CHECK(look(&p).check == INSPECT_WRONG && look(&p).inner == INNER_CORRUPT);
	CHECK(look(&p).difference == (look(&p).found + 65535u - look(&p).expected) % 65535);
}

/* The header is read as its port says: the same bytes can be valid in either protocol. */
static void the_port_tells_the_protocol(void)
{
	static const struct shape geneve = { 4, 0, 0, 4, 0, UDP, 5, true, 32 };
	struct packet p = build(&geneve);

	CHECK(is(&p, INSPECT_RIGHT, 0, INNER_RIGHT));
	CHECK(look(&p).vni == VNI && look(&p).dest == GENEVE_PORT);
	put16(p.bytes + p.udp + 2, VXLAN_PORT);
	set_outer_check(&p);
	CHECK(is(&p, INSPECT_RIGHT, 0, INNER_UNKNOWN));
}

/* The options end with the packet, behind it, or in the middle of the inner frame. */
static void geneve_options(void)
{
	static const struct shape arp = { 4, 0, 0, 0, 0, 0, 0, true, 0 };
	struct packet p = build(&arp);
	size_t inside = p.len - p.frame;

	for (uint8_t words = 1; words < 64; words++) {
		bool fits = words * 4u <= inside;

		p.bytes[p.tunnel] = words;
		p.bytes[p.tunnel + 11] = (words - 1) & 31; /* the first option */
		if (words > 32 && words * 4u <= inside)
			p.bytes[p.tunnel + 8 + 128 + 3] = words - 33;
		set_outer_check(&p);
		CHECK(look(&p).status == (fits ? OUTER_OK : OUTER_NOT_GENEVE));
	}
}

int main(void)
{
	for (size_t i = 0; i < COUNT_OF(shapes); i++) {
		complete_inside(&shapes[i]);
		partial_inside(&shapes[i]);
		nat(&shapes[i]);
		corrupt_inside(&shapes[i]);
	}
	all_ones();
	the_port_tells_the_protocol();
	geneve_options();
	printf("inspect: all right\n");
	return 0;
}
