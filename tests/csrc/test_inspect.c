/* SPDX-License-Identifier: MIT */
/* inspect(): the state of an outer checksum, and by how much a wrong one is off. */
#include "inspect.h"
#include "packets.h"

static const struct outer_ports any_port;

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
	{ 4, 0, 0, 4, 0, UDP, 5 },  { 6, 0, 0, 4, 0, UDP, 0 },     { 4, 8, 1, 6, 0, TCP, 40 },
	{ 6, 8, 2, 6, 16, TCP, 7 }, { 4, 0, 0, 6, 0, ICMPV6, 11 },
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
	static const struct shape arp = { 4, 0, 0, 0, 0, 0, 0 };
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

static struct inspection look_geneve(const struct packet *p)
{
	return inspect_geneve((struct view){ guard_behind(p->bytes, p->len), p->len }, &any_port);
}

/* Both headers have the same length, and the VNI at the same offset. */
static struct packet geneve(const struct shape *s)
{
	struct packet p = build(s);

	put16(p.bytes + p.vxlan, 0);
	put16(p.bytes + p.vxlan + 2, ETHERTYPE_BRIDGING);
	set_outer_check(&p);
	return p;
}

static void geneve_is_judged_as_vxlan_is(const struct shape *s)
{
	struct packet p = geneve(s);
	struct inspection seen = look_geneve(&p);

	CHECK(seen.status == OUTER_OK && seen.check == INSPECT_RIGHT && seen.inner == INNER_RIGHT);
	CHECK(seen.vni == VNI && seen.dest == VXLAN_PORT);
	add_to_check(&p, 1234);
	CHECK(look_geneve(&p).difference == 1234);
	p.bytes[p.vxlan] = 0x40; /* a version that does not exist */
	CHECK(look_geneve(&p).status == OUTER_NOT_VXLAN);
}

/* The options end after the packet, with it, or in the middle of the inner frame. */
static void geneve_options(void)
{
	static const struct shape arp = { 4, 0, 0, 0, 0, 0, 0 };
	struct packet p = geneve(&arp);
	size_t inside = p.len - p.vxlan - VXLAN_HEADER_LEN;

	for (uint8_t words = 1; words < 64; words++) {
		p.bytes[p.vxlan] = words;
		set_outer_check(&p);
		CHECK(look_geneve(&p).status == (words * 4u > inside ? OUTER_NOT_VXLAN : OUTER_OK));
	}
}

int main(void)
{
	for (size_t i = 0; i < COUNT_OF(shapes); i++) {
		complete_inside(&shapes[i]);
		partial_inside(&shapes[i]);
		nat(&shapes[i]);
		corrupt_inside(&shapes[i]);
		geneve_is_judged_as_vxlan_is(&shapes[i]);
	}
	all_ones();
	geneve_options();
	printf("inspect: all right\n");
	return 0;
}
