/* SPDX-License-Identifier: MIT */
#ifndef FIX_TUNNEL_H
#define FIX_TUNNEL_H

/*
 * Finds the parts of a tunnel packet, independently of the code under test, and fixes what random
 * mutation nearly always breaks: lengths and checksums. Otherwise almost every input would be
 * rejected as malformed or corrupt.
 */

#include "packets.h"

enum { UDP_AND_TUNNEL = 16, SHORTEST_TRANSPORT = 8 };

/** struct ip_place - offsets of an IP header and of the transport behind it, at least 8 bytes */
struct ip_place {
	size_t ip;
	size_t l4;
	uint8_t protocol;
};

static inline bool find_ip(const uint8_t *bytes, size_t len, size_t ip, struct ip_place *place)
{
	size_t left = len > ip ? len - ip : 0;

	if (left >= 20 && bytes[ip] >> 4 == 4) {
		*place = (struct ip_place){ ip, ip + (bytes[ip] & 0x0fu) * 4, bytes[ip + 9] };
	} else if (left >= 40 && bytes[ip] >> 4 == 6) {
		*place = (struct ip_place){ ip, ip + 40, bytes[ip + 6] };
		while (place->l4 + 8 <= len &&
		       (place->protocol == 0 || place->protocol == 43 || place->protocol == 60)) {
			place->protocol = bytes[place->l4];
			place->l4 += 8 + 8 * (size_t)bytes[place->l4 + 1];
		}
	} else {
		return false;
	}
	return place->l4 + SHORTEST_TRANSPORT <= len;
}

/* All policies of the fuzz targets take this port for Geneve, if for anything. */
static inline bool is_geneve(const uint8_t *bytes, size_t len, size_t udp)
{
	return udp + UDP_AND_TUNNEL <= len && get16(bytes + udp + 2) == GENEVE_PORT;
}

/* Makes the options end where the header says. */
static inline void fix_options(uint8_t *bytes, size_t len, size_t header)
{
	size_t at = header + 8, end = at + (bytes[header] & 0x3fu) * 4;

	bytes[header] &= 0x3f; /* version 0 */
	while (end <= len && at < end) {
		size_t words = (end - at) / 4 - 1;

		if ((bytes[at + 3] & 0x1fu) > words)
			bytes[at + 3] = (uint8_t)words;
		at += 4 + (bytes[at + 3] & 0x1fu) * 4;
	}
}

/* Offset of what the tunnel carries; *@bare: it is no Ethernet frame (the GPE draft, Geneve). */
static inline size_t find_inner(const uint8_t *bytes, size_t len, size_t udp, bool *bare)
{
	*bare = false;
	if (is_geneve(bytes, len, udp)) {
		*bare = get16(bytes + udp + 10) != 0x6558;
		return udp + UDP_AND_TUNNEL + (bytes[udp + 8] & 0x3fu) * 4;
	}
	if (udp + UDP_AND_TUNNEL <= len)
		*bare = bytes[udp + 8] & 0x04 && bytes[udp + 11] < 3;
	return udp + UDP_AND_TUNNEL;
}

/* The inner IP header: after any VLAN tags, or without an Ethernet header. */
static inline bool find_inner_ip(const uint8_t *bytes, size_t len, size_t udp,
				 struct ip_place *place)
{
	bool bare;
	size_t inner = find_inner(bytes, len, udp, &bare), type = inner + 12;

	if (bare)
		return find_ip(bytes, len, inner, place);
	while (type + 2 <= len && (get16(bytes + type) == 0x8100 || get16(bytes + type) == 0x88a8))
		type += 4;
	return find_ip(bytes, len, type + 2, place);
}

/* Makes the lengths of the packet at @place reach to the end of the bytes. */
static inline void fix_lengths(uint8_t *bytes, size_t len, const struct ip_place *place)
{
	uint8_t *ip = bytes + place->ip;

	if (*ip >> 4 == 4)
		put16(ip + 2, len - place->ip);
	else
		put16(ip + 4, len - place->ip - 40);
	if (place->protocol == UDP)
		put16(bytes + place->l4 + 4, len - place->l4);
}

/* Length of the transport by its own length field or IP's; 0 if that is out of range. */
static inline size_t transport_len(const uint8_t *bytes, size_t len, const struct ip_place *place)
{
	const uint8_t *ip = bytes + place->ip;
	size_t end = place->ip + (*ip >> 4 == 4 ? get16(ip + 2) : 40u + get16(ip + 4));
	size_t l4_len = place->protocol == UDP ? get16(bytes + place->l4 + 4) : end - place->l4;
	size_t least = check_offset(place->protocol) + 2;

	return end >= place->l4 && l4_len >= least && l4_len <= len - place->l4 ? l4_len : 0;
}

/* Makes the checksums of the packet at @place right, or the one of its transport @partial. */
static inline void fix_checksums(uint8_t *bytes, size_t len, const struct ip_place *place,
				 bool partial)
{
	uint8_t *ip = bytes + place->ip, *l4 = bytes + place->l4;
	size_t l4_len = transport_len(bytes, len, place);

	if (*ip >> 4 == 4)
		set_ipv4_check(ip);
	if (!l4_len)
		return;
	if (partial)
		put16(l4 + check_offset(place->protocol), slow_pseudo(ip, place->protocol, l4_len));
	else
		set_check(ip, place->protocol, l4, l4_len);
}

/** fix_tunnel() - fix parts of the tunnel packet @bytes, chosen by the bits of @choice */
static inline void fix_tunnel(uint8_t *bytes, size_t len, unsigned int choice)
{
	struct ip_place outer, inner;
	bool has_inner;

	if (!find_ip(bytes, len, 0, &outer))
		return;
	if (choice & 0x6000 && is_geneve(bytes, len, outer.l4))
		fix_options(bytes, len, outer.l4 + 8);
	has_inner = find_inner_ip(bytes, len, outer.l4, &inner);
	if (has_inner) {
		if (choice & 0x01)
			fix_lengths(bytes, len, &inner);
		if (choice & 0x06) /* more often than not */
			fix_checksums(bytes, len, &inner, (choice & 0x38) == 0);
	}
	if (choice & 0x40)
		fix_lengths(bytes, len, &outer);
	if (choice & 0x80)
		fix_checksums(bytes, len, &outer, (choice & 0x600) == 0);
	if (has_inner && (choice & 0x1800) == 0) /* after the outer one: checksum offload */
		fix_checksums(bytes, len, &inner, true);
	if (choice & 0x100) /* as NAT leaves it: off by the difference of two ports */
		put16(bytes + outer.l4 + 6, get16(bytes + outer.l4 + 6) + (choice >> 16));
}

#endif
