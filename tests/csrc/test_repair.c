/* SPDX-License-Identifier: MIT */
/* repair() on packets of every shape: whole, damaged, cut short, and mutated at random. */
#include "inspect.h"
#include "packets.h"
#include "repair.h"

static const struct repair_policy keep_zero = { .ports = BOTH_PORTS };
static const struct repair_policy fill_zero = { .ports = BOTH_PORTS, .fill_zero = true };

static bool seen[REPAIR_REASONS];

static bool is_written(enum repair_outcome outcome)
{
	return outcome == REPAIR_REPAIRED || outcome == REPAIR_FILLED;
}

/* Runs repair() on a copy that ends at a guard page. Checks that nothing but the outer checksum
 * field changes, and only if the verdict says so and the result is right. */
static enum repair_reason judge(const struct packet *p, size_t wirelen,
				const struct repair_policy *policy, uint8_t *after)
{
	uint8_t *copy = guard_behind(p->bytes, p->len);
	struct repair_result result = repair(copy, p->len, wirelen, false, true, policy);
	struct repair_result again;

	CHECK(result.reason < REPAIR_REASONS);
	CHECK(is_written(repair_outcome(result.reason)) == (result.verdict == REPAIR_REPLACE));
	seen[result.reason] = true;
	if (after)
		memcpy(after, copy, p->len);
	if (result.verdict == REPAIR_ACCEPT) {
		CHECK(!memcmp(copy, p->bytes, p->len));
		return result.reason;
	}
	again = repair(copy, p->len, wirelen, false, true, policy);
	CHECK(again.verdict == REPAIR_ACCEPT && again.reason == REPAIR_RIGHT);
	return result.reason;
}

/* The same, and after a repair the packet must be @right. */
static enum repair_reason judge_against(const struct packet *damaged, const struct packet *right,
					const struct repair_policy *policy)
{
	uint8_t after[PACKET_MAX];
	enum repair_reason reason = judge(damaged, damaged->len, policy, after);

	if (reason == REPAIR_RECOMPUTED || reason == REPAIR_RECOMPUTED_UNPROVEN ||
	    reason == REPAIR_ZERO_FILLED)
		CHECK(!memcmp(after, right->bytes, right->len));
	return reason;
}

/* Calls @test with every sensible combination of headers. */
static void for_each_shape(void (*test)(const struct shape *))
{
	static const struct {
		uint8_t version;
		uint8_t protocol;
	} inner[] = {
		{ 0, UDP },  { 4, UDP }, { 4, TCP },    { 4, ICMP },
		{ 4, SCTP }, { 6, UDP }, { 6, ICMPV6 }, { 6, TCP },
	};
	static char name[128];

	for (unsigned int bits = 0; bits < 48; bits++) {
		for (size_t i = 0; i < COUNT_OF(inner); i++) {
			struct shape s = {
				.version = bits & 1 ? 6 : 4,
				.options = bits & 2 ? 8 : 0,
				.tags = (uint8_t)(bits / 8 % 3),
				.inner_version = inner[i].version,
				.inner_options = bits & 4 ? 16 : 0,
				.protocol = inner[i].protocol,
				.payload = 5,
				.geneve = bits >= 24,
				.tunnel_options = bits >= 32 ? 12 : 0,
			};

			snprintf(name, sizeof(name),
				 "(%s+%d, outer v%d+%d, %d tags, inner v%d+%d %d)",
				 s.geneve ? "Geneve" : "VXLAN", s.tunnel_options, s.version,
				 s.options, s.tags, s.inner_version, s.inner_options, s.protocol);
			check_case = name;
			test(&s);
		}
	}
	check_case = "";
}

static bool has_checksum(const struct shape *s)
{
	return s->inner_version && s->protocol != SCTP;
}

static void right_and_wrong(const struct shape *s)
{
	struct packet right = build(s), p = right;
	uint16_t good = get16(p.bytes + p.udp + 6);

	CHECK(judge(&p, p.len, &keep_zero, NULL) == REPAIR_RIGHT);
	for (unsigned int bit = 0; bit < 16; bit++) {
		put16(p.bytes + p.udp + 6, good ^ 1u << bit);
		CHECK(judge_against(&p, &right, &fill_zero) ==
		      (has_checksum(s) ? REPAIR_RECOMPUTED : REPAIR_RECOMPUTED_UNPROVEN));
	}
	put16(p.bytes + p.udp + 6, 0);
	CHECK(judge_against(&p, &right, &keep_zero) == REPAIR_ZERO_KEPT);
	CHECK(judge_against(&p, &right, &fill_zero) == REPAIR_ZERO_FILLED);
}

/* A wrong inner checksum is never covered by a new outer one, wherever the damage is. */
static void inner_corrupt(const struct shape *s)
{
	struct packet right = build(s);

	if (!has_checksum(s))
		return;
	for (size_t at = right.inner_l4; at < right.len; at++) {
		struct packet p = right;

		if (s->protocol == UDP && at - p.inner_l4 >= 4 && at - p.inner_l4 < 6)
			continue; /* the length: malformed rather than corrupt */
		p.bytes[at] ^= 0x10;
		put16(p.bytes + p.udp + 6, get16(p.bytes + p.udp + 6) ^ 0x5555u);
		CHECK(judge(&p, p.len, &keep_zero, NULL) == REPAIR_INNER_CORRUPT);
		put16(p.bytes + p.udp + 6, 0);
		CHECK(judge(&p, p.len, &fill_zero, NULL) == REPAIR_INNER_CORRUPT);
		/* With a right outer checksum there is nothing to do. */
		set_outer_check(&p);
		CHECK(judge(&p, p.len, &keep_zero, NULL) == REPAIR_RIGHT);
	}
}

/* CHECKSUM_PARTIAL: the inner field holds the folded pseudo-header sum. */
static void inner_partial(const struct shape *s)
{
	struct packet p = build(s);
	uint32_t pseudo =
	    slow_pseudo(p.bytes + p.inner_ip, s->protocol, (s->protocol == TCP ? 20u : 8u) + 5);

	if (!has_checksum(s) || s->protocol == ICMP)
		return;
	put16(p.bytes + p.inner_l4 + check_offset(s->protocol), pseudo);
	CHECK(judge(&p, p.len, &keep_zero, NULL) == REPAIR_INNER_PARTIAL);
}

/* Makes the outer lengths of @p end at p->len, as far as the headers are there. */
static void shorten_outer(struct packet *p, const struct shape *s)
{
	if (p->len < p->udp)
		return;
	if (s->version == 4) {
		put16(p->bytes + 2, p->len);
		set_ipv4_check(p->bytes);
	} else {
		put16(p->bytes + 4, p->len - 40);
	}
	if (p->len >= p->udp + 8)
		put16(p->bytes + p->udp + 4, p->len - p->udp);
}

/* The reason for a packet with consistent outer lengths that ends after @len bytes. */
static bool plausible_when_cut(const struct packet *right, size_t len, enum repair_reason reason)
{
	switch (reason) {
	case REPAIR_NOT_IP:
		return !len;
	case REPAIR_MALFORMED_IP:
		return len < right->udp;
	case REPAIR_MALFORMED_UDP:
		return len >= right->udp && len < right->udp + 8;
	case REPAIR_NOT_VXLAN:
	case REPAIR_NOT_GENEVE:
		return len >= right->tunnel && len < right->frame;
	case REPAIR_INNER_MALFORMED:
		return len >= right->frame && len < right->len;
	case REPAIR_RECOMPUTED_UNPROVEN: /* ARP needs its EtherType, SCTP its length */
		return len >= right->frame + 14;
	case REPAIR_RECOMPUTED:
		return len == right->len;
	default:
		return false;
	}
}

/* Every length from 0 on: with wrong lengths in the headers, as a partial copy that the kernel
 * reports, and with corrected outer lengths, so that only the inner ones are wrong. */
static void cut_short(const struct shape *s)
{
	struct packet right = build(s);

	put16(right.bytes + right.udp + 6, get16(right.bytes + right.udp + 6) ^ 0x5555u);
	for (size_t len = 0; len <= right.len; len++) {
		struct packet p = right;

		p.len = len;
		if (len < right.len) {
			CHECK(judge(&p, len, &fill_zero, NULL) ==
			      (len ? REPAIR_MALFORMED_IP : REPAIR_NOT_IP));
			CHECK(judge(&p, right.len, &fill_zero, NULL) == REPAIR_TRUNCATED);
		}
		shorten_outer(&p, s);
		CHECK(plausible_when_cut(&right, len, judge(&p, len, &fill_zero, NULL)));
	}
}

/* Bytes after the end of the IP packet, such as Ethernet padding, are not part of it. */
static void trailing_bytes(const struct shape *s)
{
	struct packet right = build(s), p;

	memset(right.bytes + right.len, 0xa5, 7);
	right.len += 7;
	p = right;
	CHECK(judge(&p, p.len, &keep_zero, NULL) == REPAIR_RIGHT);
	put16(p.bytes + p.udp + 6, get16(p.bytes + p.udp + 6) ^ 1u);
	CHECK(judge_against(&p, &right, &keep_zero) ==
	      (has_checksum(s) ? REPAIR_RECOMPUTED : REPAIR_RECOMPUTED_UNPROVEN));
}

/* Changes of a packet, for the table below. */
static void not_ip(struct packet *p)
{
	p->bytes[0] = 0x50;
}

static void short_header_length(struct packet *p)
{
	p->bytes[0] = 0x44;
}

static void total_length_below_header(struct packet *p)
{
	put16(p->bytes + 2, 19);
}

static void more_fragments(struct packet *p)
{
	p->bytes[6] = 0x20;
}

static void last_fragment(struct packet *p)
{
	p->bytes[7] = 1;
}

static void dont_fragment(struct packet *p)
{
	p->bytes[6] = 0x40;
}

static void outer_tcp(struct packet *p)
{
	p->bytes[9] = TCP;
}

static void loose_route(struct packet *p)
{
	memcpy(p->bytes + 20, "\x01\x83\x07\x04\x0a\x00\x00\x03", 8);
}

static void strict_route(struct packet *p)
{
	memcpy(p->bytes + 20, "\x89\x07\x04\x0a\x00\x00\x03\x00", 8);
}

static void endless_option(struct packet *p)
{
	memcpy(p->bytes + 20, "\x07\x00\x01\x01\x01\x01\x01\x01", 8);
}

static void overlong_option(struct packet *p)
{
	memcpy(p->bytes + 20, "\x07\x09\x01\x01\x01\x01\x01\x01", 8);
}

static void route_behind_the_end(struct packet *p)
{
	memcpy(p->bytes + 20, "\x00\x83\x07\x04\x0a\x00\x00\x03", 8);
}

static void record_route(struct packet *p)
{
	memcpy(p->bytes + 20, "\x07\x07\x04\x0a\x00\x00\x03\x00", 8);
}

static void v6_fragment(struct packet *p)
{
	p->bytes[6] = 44;
}

static void v6_no_payload(struct packet *p)
{
	put16(p->bytes + 4, 0);
}

static void v6_routing(struct packet *p)
{
	p->bytes[6] = 43;
	p->bytes[43] = 1; /* segments left */
}

static void v6_routing_done(struct packet *p)
{
	p->bytes[6] = 43;
	p->bytes[43] = 0;
}

static void v6_home_address(struct packet *p)
{
	memcpy(p->bytes + 42, "\x00\xc9\x03\x00\x00\x00", 6);
}

static void v6_pad1(struct packet *p)
{
	memset(p->bytes + 42, 0, 6);
}

static void v6_option_cut(struct packet *p)
{
	memcpy(p->bytes + 42, "\x00\x00\x00\x00\x00\x01", 6);
}

static void v6_option_overlong(struct packet *p)
{
	memcpy(p->bytes + 42, "\x01\x05\x00\x00\x00\x00", 6);
}

static void v6_extension_beyond(struct packet *p)
{
	p->bytes[41] = 255;
}

static void v6_outer_tcp(struct packet *p)
{
	p->bytes[40] = TCP;
}

static void udp_length_7(struct packet *p)
{
	put16(p->bytes + p->udp + 4, 7);
}

static void udp_length_beyond(struct packet *p)
{
	put16(p->bytes + p->udp + 4, p->len - p->udp + 1u);
}

static void udp_length_short(struct packet *p)
{
	put16(p->bytes + p->udp + 4,
	      16); /* the rest of the IP packet is not part of the datagram */
}

static void port_4789(struct packet *p)
{
	put16(p->bytes + p->udp + 2, 4789);
}

static void no_vni_flag(struct packet *p)
{
	p->bytes[p->tunnel] = 0;
}

static void remote_checksum(struct packet *p)
{
	p->bytes[p->tunnel + 1] = 0x20;
}

static void gpe_ipv4(struct packet *p)
{
	p->bytes[p->tunnel] = 0x0c;
	p->bytes[p->tunnel + 3] = 1;
	memmove(p->bytes + p->frame, p->bytes + p->inner_ip, p->len - p->inner_ip);
}

static void gpe_ipv6_but_is_not(struct packet *p)
{
	gpe_ipv4(p);
	p->bytes[p->tunnel + 3] = 2;
	p->bytes[p->frame] = 0;
}

static void gpe_ethernet(struct packet *p)
{
	p->bytes[p->tunnel] = 0x0c;
	p->bytes[p->tunnel + 3] = 3;
}

static void gpe_nsh(struct packet *p)
{
	p->bytes[p->tunnel] = 0x0c;
	p->bytes[p->tunnel + 3] = 4;
}

static void gpe_version(struct packet *p)
{
	gpe_ethernet(p);
	p->bytes[p->tunnel] |= 0x10;
}

static void gpe_control(struct packet *p)
{
	gpe_ethernet(p);
	p->bytes[p->tunnel] |= 0x01;
}

static void group_policy(struct packet *p)
{
	memcpy(p->bytes + p->tunnel, "\x88\x48\x12\x34", 4);
}

/* They use the same byte. */
static void group_policy_and_gpe(struct packet *p)
{
	memcpy(p->bytes + p->tunnel, "\x8c\x00\x00\x03", 4);
}

static void reserved_flag(struct packet *p)
{
	p->bytes[p->tunnel] |= 0x40;
}

static void reserved_byte(struct packet *p)
{
	p->bytes[p->tunnel + 2] = 1;
}

static void reserved_behind_vni(struct packet *p)
{
	p->bytes[p->tunnel + 7] = 1;
}

static void remote_checksum_start(struct packet *p)
{
	remote_checksum(p);
	reserved_behind_vni(p);
}

static void geneve_on_vxlan_port(struct packet *p)
{
	put16(p->bytes + p->udp + 2, VXLAN_PORT);
}

static void vxlan_on_geneve_port(struct packet *p)
{
	put16(p->bytes + p->udp + 2, GENEVE_PORT);
}

static void unchanged(struct packet *p)
{
	(void)p;
}

static void version_1(struct packet *p)
{
	p->bytes[p->tunnel] |= 0x40;
}

static void control_message(struct packet *p)
{
	p->bytes[p->tunnel + 1] |= 0x80;
}

static void reserved_bits(struct packet *p)
{
	p->bytes[p->tunnel + 1] |= 0x3f;
	p->bytes[p->tunnel + 7] = 0xff;
}

static void option_beyond(struct packet *p)
{
	p->bytes[p->tunnel + 11]++;
}

static void option_ends_early(struct packet *p)
{
	p->bytes[p->tunnel + 11]--; /* the rest is an option of its own, all zero */
}

static void options_beyond_the_packet(struct packet *p)
{
	p->bytes[p->tunnel] = 0x3f;
}

static void geneve_ipv4(struct packet *p)
{
	put16(p->bytes + p->tunnel + 2, 0x0800);
	memmove(p->bytes + p->frame, p->bytes + p->inner_ip, p->len - p->inner_ip);
}

static void geneve_ipv6_but_is_not(struct packet *p)
{
	geneve_ipv4(p);
	put16(p->bytes + p->tunnel + 2, 0x86dd);
	p->bytes[p->frame] = 0;
}

static void geneve_mpls(struct packet *p)
{
	put16(p->bytes + p->tunnel + 2, 0x8847);
}

static void inner_fragment(struct packet *p)
{
	p->bytes[p->inner_ip + 6] = 0x20;
	set_ipv4_check(p->bytes + p->inner_ip);
}

static void inner_loose_route(struct packet *p)
{
	memcpy(p->bytes + p->inner_ip + 20, "\x01\x83\x07\x04\x0a\x00\x00\x03", 8);
	set_ipv4_check(p->bytes + p->inner_ip);
}

static void inner_header_corrupt(struct packet *p)
{
	p->bytes[p->inner_ip + 8]--; /* time to live */
}

static void inner_zero_check(struct packet *p)
{
	put16(p->bytes + p->inner_l4 + 6, 0);
}

static void inner_udp_beyond(struct packet *p)
{
	put16(p->bytes + p->inner_l4 + 4, 99);
}

static void inner_tcp_short(struct packet *p)
{
	p->bytes[p->inner_ip + 9] = TCP; /* of 13 bytes */
	set_ipv4_check(p->bytes + p->inner_ip);
}

static void inner_icmp_short(struct packet *p)
{
	p->bytes[p->inner_ip + 9] = ICMP;
	put16(p->bytes + p->inner_ip + 2, 23);
	set_ipv4_check(p->bytes + p->inner_ip);
}

static void inner_icmpv6_in_ipv4(struct packet *p)
{
	p->bytes[p->inner_ip + 9] = ICMPV6;
	set_ipv4_check(p->bytes + p->inner_ip);
}

static void inner_icmp_in_ipv6(struct packet *p)
{
	p->bytes[p->inner_ip + 6] = ICMP;
}

static void inner_v6_no_next_header(struct packet *p)
{
	p->bytes[p->inner_ip + 6] = 59;
	put16(p->bytes + p->inner_ip + 4, 0);
}

static void inner_v6_jumbogram(struct packet *p)
{
	p->bytes[p->inner_ip + 6] = 0;
	put16(p->bytes + p->inner_ip + 4, 0);
}

static void inner_is_not_ip(struct packet *p)
{
	p->bytes[p->inner_ip] = 0;
}

static void inner_third_tag(struct packet *p)
{
	put16(p->bytes + p->inner_ip - 2, 0x8100);
}

/* Every row begins with a packet whose outer checksum has one wrong bit. */
static void every_reason(void)
{
	static const struct shape v4 = { 4, 0, 0, 4, 0, UDP, 5, false, 0 };
	static const struct shape v4_options = { 4, 8, 0, 4, 0, UDP, 5, false, 0 };
	static const struct shape v4_inner_options = { 4, 0, 0, 4, 8, UDP, 5, false, 0 };
	static const struct shape v6 = { 6, 0, 0, 6, 0, UDP, 5, false, 0 };
	static const struct shape v6_extension = { 6, 8, 0, 4, 0, UDP, 5, false, 0 };
	static const struct shape qinq = { 4, 0, 2, 4, 0, UDP, 5, false, 0 };
	static const struct shape geneve = { 4, 0, 0, 4, 0, UDP, 5, true, 12 };
	static const struct shape geneve_8_words = { 4, 0, 0, 4, 0, UDP, 5, true, 32 };
	static const struct {
		const char *name;
		const struct shape *shape;
		void (*change)(struct packet *);
		enum repair_reason reason;
	} rows[] = {
#define ROW(shape, change, reason) { #change, &(shape), change, reason }
		ROW(v4, not_ip, REPAIR_NOT_IP),
		ROW(v4, short_header_length, REPAIR_MALFORMED_IP),
		ROW(v4, total_length_below_header, REPAIR_MALFORMED_IP),
		ROW(v4, more_fragments, REPAIR_FRAGMENT),
		ROW(v4, last_fragment, REPAIR_FRAGMENT),
		ROW(v4, dont_fragment, REPAIR_RECOMPUTED),
		ROW(v4, outer_tcp, REPAIR_NOT_UDP),
		ROW(v4_options, loose_route, REPAIR_REROUTED),
		ROW(v4_options, strict_route, REPAIR_REROUTED),
		ROW(v4_options, endless_option, REPAIR_REROUTED),
		ROW(v4_options, overlong_option, REPAIR_REROUTED),
		ROW(v4_options, route_behind_the_end, REPAIR_RECOMPUTED),
		ROW(v4_options, record_route, REPAIR_RECOMPUTED),
		ROW(v6, v6_fragment, REPAIR_FRAGMENT),
		ROW(v6, v6_no_payload, REPAIR_MALFORMED_UDP),
		ROW(v6_extension, v6_routing, REPAIR_REROUTED),
		ROW(v6_extension, v6_routing_done, REPAIR_RECOMPUTED),
		ROW(v6_extension, v6_home_address, REPAIR_REROUTED),
		ROW(v6_extension, v6_pad1, REPAIR_RECOMPUTED),
		ROW(v6_extension, v6_option_cut, REPAIR_REROUTED),
		ROW(v6_extension, v6_option_overlong, REPAIR_REROUTED),
		ROW(v6_extension, v6_extension_beyond, REPAIR_MALFORMED_IP),
		ROW(v6_extension, v6_outer_tcp, REPAIR_NOT_UDP),
		ROW(v4, udp_length_7, REPAIR_MALFORMED_UDP),
		ROW(v4, udp_length_beyond, REPAIR_MALFORMED_UDP),
		ROW(v4, udp_length_short, REPAIR_INNER_MALFORMED),
		ROW(v4, port_4789, REPAIR_OTHER_PORT),
		ROW(v4, no_vni_flag, REPAIR_NOT_VXLAN),
		ROW(v4, remote_checksum, REPAIR_RECOMPUTED_UNPROVEN),
		ROW(v4, gpe_ipv4, REPAIR_RECOMPUTED),
		ROW(v4, gpe_ipv6_but_is_not, REPAIR_INNER_MALFORMED),
		ROW(v4, gpe_ethernet, REPAIR_RECOMPUTED),
		ROW(v4, gpe_nsh, REPAIR_INNER_UNKNOWN),
		ROW(v4, gpe_version, REPAIR_INNER_UNKNOWN),
		ROW(v4, gpe_control, REPAIR_INNER_UNKNOWN),
		ROW(v4, group_policy, REPAIR_RECOMPUTED),
		ROW(v4, group_policy_and_gpe, REPAIR_INNER_UNKNOWN),
		ROW(v4, reserved_flag, REPAIR_INNER_UNKNOWN),
		ROW(v4, reserved_byte, REPAIR_INNER_UNKNOWN),
		ROW(v4, reserved_behind_vni, REPAIR_INNER_UNKNOWN),
		ROW(v4, remote_checksum_start, REPAIR_RECOMPUTED_UNPROVEN),
		ROW(v4, vxlan_on_geneve_port, REPAIR_NOT_GENEVE),
		ROW(geneve, unchanged, REPAIR_RECOMPUTED),
		ROW(geneve, version_1, REPAIR_NOT_GENEVE),
		ROW(geneve, control_message, REPAIR_INNER_UNKNOWN),
		ROW(geneve, reserved_bits, REPAIR_RECOMPUTED),
		ROW(geneve, option_beyond, REPAIR_NOT_GENEVE),
		ROW(geneve, option_ends_early, REPAIR_RECOMPUTED),
		ROW(geneve, options_beyond_the_packet, REPAIR_NOT_GENEVE),
		ROW(geneve, geneve_ipv4, REPAIR_RECOMPUTED),
		ROW(geneve, geneve_ipv6_but_is_not, REPAIR_INNER_MALFORMED),
		ROW(geneve, geneve_mpls, REPAIR_INNER_UNKNOWN),
		ROW(geneve, inner_header_corrupt, REPAIR_INNER_CORRUPT),
		ROW(geneve_8_words, unchanged, REPAIR_RECOMPUTED),
		ROW(geneve_8_words, geneve_on_vxlan_port, REPAIR_INNER_UNKNOWN),
		ROW(v4, inner_fragment, REPAIR_RECOMPUTED_UNPROVEN),
		ROW(v4_inner_options, inner_loose_route, REPAIR_RECOMPUTED_UNPROVEN),
		ROW(v4, inner_header_corrupt, REPAIR_INNER_CORRUPT),
		ROW(v4, inner_zero_check, REPAIR_RECOMPUTED_UNPROVEN),
		ROW(v4, inner_udp_beyond, REPAIR_INNER_MALFORMED),
		ROW(v4, inner_tcp_short, REPAIR_INNER_MALFORMED),
		ROW(v4, inner_icmp_short, REPAIR_INNER_MALFORMED),
		ROW(v4, inner_icmpv6_in_ipv4, REPAIR_RECOMPUTED_UNPROVEN),
		ROW(v6, inner_icmp_in_ipv6, REPAIR_RECOMPUTED_UNPROVEN),
		ROW(v6, inner_v6_no_next_header, REPAIR_RECOMPUTED_UNPROVEN),
		ROW(v6, inner_v6_jumbogram, REPAIR_INNER_MALFORMED),
		ROW(v4, inner_is_not_ip, REPAIR_INNER_MALFORMED),
		ROW(qinq, inner_third_tag, REPAIR_RECOMPUTED_UNPROVEN),
#undef ROW
	};

	for (size_t i = 0; i < COUNT_OF(rows); i++) {
		struct packet p = build(rows[i].shape);

		check_case = rows[i].name;
		p.bytes[p.udp + 6] ^= 0x10;
		rows[i].change(&p);
		CHECK(judge(&p, p.len, &keep_zero, NULL) == rows[i].reason);
		if (rows[i].reason != REPAIR_INNER_UNKNOWN)
			continue;
		set_outer_check(&p); /* which can be verified nevertheless */
		CHECK(judge(&p, p.len, &keep_zero, NULL) == REPAIR_RIGHT);
		put16(p.bytes + p.udp + 6, 0);
		CHECK(judge(&p, p.len, &fill_zero, NULL) == REPAIR_ZERO_KEPT);
	}
	check_case = "";
}

/* At most eight extension headers are walked; real packets have fewer. */
static void extension_chains(void)
{
	static const struct shape v6 = { 6, 0, 0, 4, 0, UDP, 5, false, 0 };

	for (size_t headers = 0; headers < 12; headers++) {
		struct packet right = build(&v6), p = right;

		memset(p.bytes + 40, 0, 8 * headers);
		for (size_t i = 0; i < headers; i++)
			p.bytes[40 + 8 * i] = i + 1 == headers ? UDP : 60;
		memcpy(p.bytes + 40 + 8 * headers, right.bytes + 40, right.len - 40);
		p.bytes[6] = headers ? 60 : UDP;
		p.len += 8 * headers;
		put16(p.bytes + 4, p.len - 40);
		CHECK(judge(&p, p.len, &keep_zero, NULL) ==
		      (headers < 8 ? REPAIR_RIGHT : REPAIR_MALFORMED_IP));
	}
}

/* RFC 768: a computed 0 is sent as 0xffff, because 0 means "not computed". */
static void computed_zero(void)
{
	static const struct shape shapes[] = { { 4, 0, 0, 0, 0, UDP, 0, false, 0 },
					       { 6, 0, 0, 0, 0, UDP, 0, false, 0 } };

	for (size_t i = 0; i < COUNT_OF(shapes); i++) {
		struct packet right = build(&shapes[i]), p;

		/* Adding the checksum to what it covers makes the rest sum to 0xffff. */
		put16(right.bytes + right.len - 2, get16(right.bytes + right.udp + 6));
		put16(right.bytes + right.udp + 6, 0xffff);
		CHECK(judge(&right, right.len, &keep_zero, NULL) == REPAIR_RIGHT);
		p = right;
		put16(p.bytes + p.udp + 6, 0);
		CHECK(judge_against(&p, &right, &fill_zero) == REPAIR_ZERO_FILLED);
		put16(p.bytes + p.udp + 6, 0xfffe);
		CHECK(judge_against(&p, &right, &keep_zero) == REPAIR_RECOMPUTED_UNPROVEN);
	}
}

/* The only message that sums to 0, found by the differential test. Its checksum is 0xffff; 0 would
 * be wrong. */
static void icmp_of_zeros(void)
{
	static const struct shape icmp = { 4, 0, 0, 4, 0, ICMP, 8, false, 0 };
	static const struct {
		uint16_t check;
		enum inner_state state;
	} rows[] = { { 0xffff, INNER_RIGHT }, { 0, INNER_CORRUPT }, { 0xf7ff, INNER_CORRUPT } };

	for (size_t i = 0; i < COUNT_OF(rows); i++) {
		struct packet p = build(&icmp);
		struct inspection told;

		memset(p.bytes + p.inner_l4, 0, p.len - p.inner_l4);
		put16(p.bytes + p.inner_l4 + 2, rows[i].check);
		told =
		    inspect((struct view){ guard_behind(p.bytes, p.len), p.len }, &keep_zero.ports);
		CHECK(told.inner == rows[i].state);
		CHECK(told.inner_found == rows[i].check && told.inner_expected == 0xffff);
	}
}

static void what_the_kernel_says(void)
{
	static const struct shape v4 = { 4, 0, 0, 4, 0, UDP, 5, false, 0 };
	struct packet p = build(&v4);
	struct repair_result result = repair(p.bytes, p.len, p.len, true, true, &keep_zero);

	CHECK(result.verdict == REPAIR_ACCEPT && result.reason == REPAIR_PARTIAL);
	seen[REPAIR_PARTIAL] = true;
	p.bytes[p.udp + 6] ^= 0x10;
	result = repair(p.bytes, p.len, p.len, false, false, &keep_zero);
	CHECK(result.verdict == REPAIR_ACCEPT && result.reason == REPAIR_NO_HEADROOM);
	seen[REPAIR_NO_HEADROOM] = true;
	result = repair(NULL, 0, 0, false, true, &keep_zero);
	CHECK(result.verdict == REPAIR_ACCEPT && result.reason == REPAIR_NOT_IP);
	result = repair(NULL, 0, 1, false, true, &keep_zero);
	CHECK(result.verdict == REPAIR_ACCEPT && result.reason == REPAIR_TRUNCATED);
}

static void ports(void)
{
	static const struct shape v4 = { 4, 0, 0, 4, 0, UDP, 5, false, 0 };
	struct packet p = build(&v4);
	struct repair_policy policy = { .fill_zero = false };

	CHECK(judge(&p, p.len, &policy, NULL) == REPAIR_RIGHT); /* none named: any port */
	for (uint32_t port = 0; port < 65536; port++)
		if (port != VXLAN_PORT)
			outer_ports_add(&policy.ports, (uint16_t)port);
	CHECK(judge(&p, p.len, &policy, NULL) == REPAIR_OTHER_PORT);
	outer_ports_add(&policy.ports, VXLAN_PORT);
	CHECK(judge(&p, p.len, &policy, NULL) == REPAIR_RIGHT);
}

/* A policy with one port admits this port only. */
static void every_port(void)
{
	for (uint32_t port = 0; port < 65536; port++) {
		static struct outer_ports one;

		memset(&one, 0, sizeof(one));
		outer_ports_add(&one, (uint16_t)port);
		CHECK(outer_ports_protocol(&one, (uint16_t)port) == TUNNEL_VXLAN);
		outer_ports_set_geneve(&one, (uint16_t)port);
		for (uint32_t other = 0; other < 65536; other += other % 64 ? 1 : 63) {
			enum tunnel_protocol protocol = outer_ports_protocol(&one, (uint16_t)other);

			CHECK(outer_ports_have(&one, (uint16_t)other) == (other == port));
			CHECK((protocol == TUNNEL_GENEVE) == (other == port));
		}
		CHECK(outer_ports_have(&one, (uint16_t)port));
		CHECK(outer_ports_protocol(&one, (uint16_t)port) == TUNNEL_GENEVE);
	}
}

/* The result has the port of a packet if it is one of the policy's. */
static void port_of_the_result(void)
{
	static const struct shape v4 = { 4, 0, 0, 4, 0, UDP, 5, false, 0 };
	static const struct repair_policy other = { .ports = ONLY_PORT(4789) };
	struct packet right = build(&v4), p = right;

	CHECK(repair(p.bytes, p.len, p.len, false, true, &keep_zero).port == VXLAN_PORT);
	CHECK(repair(p.bytes, p.len, p.len, false, true, &other).port == 0);
	CHECK(repair(p.bytes, p.len, p.len, true, true, &keep_zero).port == 0);
	p.bytes[p.tunnel] = 0;
	CHECK(repair(p.bytes, p.len, p.len, false, true, &keep_zero).port == VXLAN_PORT);
	p.bytes[p.tunnel] = 0x40;
	put16(p.bytes + p.udp + 2, GENEVE_PORT);
	CHECK(repair(p.bytes, p.len, p.len, false, true, &keep_zero).port == GENEVE_PORT);
	p = right;
	put16(p.bytes + p.udp + 4, 7);
	CHECK(repair(p.bytes, p.len, p.len, false, true, &keep_zero).port == 0);
	p = right;
	p.bytes[p.udp + 6] ^= 0x10;
	CHECK(repair(p.bytes, p.len, p.len, false, true, &keep_zero).port == VXLAN_PORT);
	p.bytes[p.udp + 6] ^= 0x20;
	p.bytes[p.len - 1] ^= 1;
	CHECK(repair(p.bytes, p.len, p.len, false, true, &keep_zero).port == VXLAN_PORT);
	put16(p.bytes + p.udp + 6, 0);
	CHECK(repair(p.bytes, p.len, p.len, false, true, &keep_zero).port == VXLAN_PORT);
}

/* inspect() and repair() must agree about the same packet. */
static void inspection_agrees(const struct packet *p, enum repair_reason reason)
{
	struct view v = { guard_behind(p->bytes, p->len), p->len };
	struct inspection seen_by = inspect(v, &fill_zero.ports);

	CHECK((seen_by.status == OUTER_OK) == (reason < REPAIR_TRUNCATED));
	CHECK((seen_by.check == INSPECT_RIGHT) == (reason == REPAIR_RIGHT));
	if (reason == REPAIR_RIGHT)
		CHECK(seen_by.found == seen_by.expected);
}

/* Any bytes are acceptable input: real packets with random damage, and whatever length. */
static void mutations(void)
{
	enum { ROUNDS = 200000 };
	uint64_t seed = 42;

	for (int round = 0; round < ROUNDS; round++) {
		static const uint8_t protocols[] = { UDP, TCP, ICMP, ICMPV6, SCTP };
		uint64_t r = next_random(&seed);
		struct shape s = {
			.version = r & 1 ? 4 : 6,
			.options = r & 2 ? 8 : 0,
			.tags = (uint8_t)((r >> 2) % 3),
			.inner_version = (uint8_t[]){ 0, 4, 6, 4 }[(r >> 8) & 3],
			.inner_options = r & 16 ? 8 : 0,
			.protocol = protocols[(r >> 16) % COUNT_OF(protocols)],
			.payload = (r >> 24) % 40,
			.geneve = r >> 31 & 1,
			.tunnel_options = r >> 31 & 1 ? (r >> 32) % 64 * 4 : 0,
		};
		struct packet p = build(&s);
		size_t headers = r & 32 ? p.len : p.frame;

		for (uint64_t n = (r >> 40) % 4; n; n--) {
			uint64_t how = next_random(&seed);

			p.bytes[how % headers] = (uint8_t)(how >> 32);
		}
		if (r >> 60 == 0)
			p.len = (r >> 50) % (p.len + 1);
		inspection_agrees(&p, judge(&p, p.len, &fill_zero, NULL));
	}
}

static void reasons_have_names(void)
{
	for (int i = 0; i < REPAIR_REASONS; i++) {
		check_case = repair_reason_name((enum repair_reason)i);
		CHECK(check_case && *check_case);
		CHECK(seen[i]); /* a reason that no test reached */
	}
	check_case = "";
	CHECK(!repair_reason_name(REPAIR_REASONS));
}

int main(void)
{
	for_each_shape(right_and_wrong);
	for_each_shape(inner_corrupt);
	for_each_shape(inner_partial);
	for_each_shape(cut_short);
	for_each_shape(trailing_bytes);
	every_reason();
	extension_chains();
	computed_zero();
	icmp_of_zeros();
	what_the_kernel_says();
	ports();
	every_port();
	port_of_the_result();
	mutations();
	reasons_have_names();
	printf("repair: all right\n");
	return 0;
}
