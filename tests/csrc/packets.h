/* SPDX-License-Identifier: MIT */
#ifndef PACKETS_H
#define PACKETS_H

/* Tunnel packets for the tests, with checksums computed byte by byte. */

#include "harness.h"

enum {
	PACKET_MAX = 4096,
	VXLAN_PORT = 8472,
	GENEVE_PORT = 6081,
	SOURCE_PORT = 40000,
	VNI = 0x123456,
	ICMP = 1,
	TCP = 6,
	UDP = 17,
	ICMPV6 = 58,
	SCTP = 132, /* a protocol whose checksum the core does not know */
};

#define PORT_BIT(port) [(port) / 64] = (uint64_t)1 << (port) % 64

/* Initialisers of a struct outer_ports: one port with VXLAN; one with VXLAN and one with Geneve. */
#define ONLY_PORT(port)                                    \
	{                                                  \
		.named = true, .bits = { PORT_BIT(port) }, \
	}
#define BOTH_PORTS                                                                      \
	{                                                                               \
		.named = true, .bits = { PORT_BIT(VXLAN_PORT), PORT_BIT(GENEVE_PORT) }, \
		.geneve = {                                                             \
			PORT_BIT(GENEVE_PORT)                                           \
		}                                                                       \
	}

/**
 * struct shape - what packet to build
 * @version:       4 or 6: the outer IP version
 * @options:       bytes of outer IPv4 options or IPv6 extension headers; a multiple of 8
 * @tags:          inner VLAN tags: 0, 1 or 2
 * @inner_version: 4 or 6; 0 is an ARP packet
 * @inner_options: as @options
 * @protocol:      inner transport
 * @payload:       bytes of inner payload
 * @geneve:        Geneve, not VXLAN
 * @tunnel_options: bytes of Geneve's only option; 0 or a multiple of 4
 */
struct shape {
	uint8_t version;
	uint8_t options;
	uint8_t tags;
	uint8_t inner_version;
	uint8_t inner_options;
	uint8_t protocol;
	size_t payload;
	bool geneve;
	uint8_t tunnel_options;
};

/** struct packet - bytes, and offsets of outer UDP, tunnel, inner frame, inner IP and inner L4 */
struct packet {
	uint8_t bytes[PACKET_MAX];
	size_t len;
	size_t udp;
	size_t tunnel;
	size_t frame;
	size_t inner_ip;
	size_t inner_l4;
};

static inline void put16(uint8_t *at, size_t value)
{
	at[0] = (uint8_t)(value >> 8);
	at[1] = (uint8_t)value;
}

static inline uint16_t get16(const uint8_t *at)
{
	return (uint16_t)(at[0] << 8 | at[1]);
}

/** slow_sum() - one's-complement sum of @len bytes, added to @sum */
static inline uint32_t slow_sum(uint32_t sum, const uint8_t *data, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		sum += i % 2 ? data[i] : (uint32_t)data[i] << 8;
		sum = (sum & 0xffff) + (sum >> 16);
	}
	return (sum & 0xffff) + (sum >> 16);
}

/** slow_pseudo() - sum of the pseudo-header of the IP packet at @ip */
static inline uint32_t slow_pseudo(const uint8_t *ip, uint8_t protocol, size_t len)
{
	bool v6 = ip[0] >> 4 == 6;
	uint32_t sum = slow_sum(0, v6 ? ip + 8 : ip + 12, v6 ? 32 : 8);

	sum += protocol + (uint32_t)len;
	return (sum & 0xffff) + (sum >> 16);
}

static inline size_t check_offset(uint8_t protocol)
{
	switch (protocol) {
	case UDP:
		return 6;
	case TCP:
		return 16;
	default:
		return 2;
	}
}

/** set_check() - fill in the checksum of the @len bytes of transport at @l4 of the packet at @ip */
static inline void set_check(const uint8_t *ip, uint8_t protocol, uint8_t *l4, size_t len)
{
	uint8_t *field = l4 + check_offset(protocol);
	uint32_t sum;

	put16(field, 0);
	sum = protocol == ICMP ? 0 : slow_pseudo(ip, protocol, len);
	sum = slow_sum(sum, l4, len);
	put16(field, sum == 0xffff && protocol == UDP ? 0xffff : ~sum);
}

/** set_outer_check() - make the outer checksum of @p right */
static inline void set_outer_check(struct packet *p)
{
	set_check(p->bytes, UDP, p->bytes + p->udp, get16(p->bytes + p->udp + 4));
}

/** set_ipv4_check() - make the header checksum of the IPv4 packet at @ip right */
static inline void set_ipv4_check(uint8_t *ip)
{
	put16(ip + 10, 0);
	put16(ip + 10, ~slow_sum(0, ip, (ip[0] & 0x0fu) * 4));
}

/* IPv4: no-operation options. IPv6: one destination options header, padded. */
static inline size_t put_ip(uint8_t *at, uint8_t version, uint8_t options, uint8_t protocol,
			    size_t payload)
{
	if (version == 4) {
		at[0] = (uint8_t)(0x40 | (20 + options) / 4);
		put16(at + 2, 20 + options + payload);
		at[8] = 64;
		at[9] = protocol;
		memcpy(at + 12, "\x0a\x00\x00\x01\x0a\x00\x00\x02", 8);
		memset(at + 20, 1, options);
		set_ipv4_check(at);
		return 20 + options;
	}
	at[0] = 0x60;
	put16(at + 4, options + payload);
	at[6] = options ? 60 : protocol;
	at[7] = 64;
	memcpy(at + 8, "\xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01", 16);
	memcpy(at + 24, "\xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x02", 16);
	if (options) {
		at[40] = protocol;
		at[41] = (uint8_t)(options / 8 - 1);
		at[42] = 1; /* PadN over the rest */
		at[43] = (uint8_t)(options - 4);
	}
	return 40 + options;
}

static inline size_t put_transport(uint8_t *ip, uint8_t *at, const struct shape *s)
{
	size_t header = s->protocol == TCP ? 20 : 8;

	put16(at, 1234);
	put16(at + 2, 53);
	if (s->protocol == TCP)
		at[12] = 5 << 4;
	if (s->protocol == UDP)
		put16(at + 4, header + s->payload);
	for (size_t i = 0; i < s->payload; i++)
		at[header + i] = (uint8_t)(3 * i + 1);
	if (s->protocol != SCTP)
		set_check(ip, s->protocol, at, header + s->payload);
	return header + s->payload;
}

static inline size_t ip_header_len(uint8_t version, uint8_t options)
{
	return (version == 4 ? 20u : 40u) + options;
}

static inline size_t put_frame(struct packet *p, const struct shape *s)
{
	uint8_t *at = p->bytes + p->frame;
	size_t type = 12, transport = (s->protocol == TCP ? 20u : 8u) + s->payload;

	memcpy(at, "\x02\0\0\0\0\x01\x02\0\0\0\0\x02", 12);
	for (int tag = 0; tag < s->tags; tag++, type += 4)
		put16(at + type, tag == 0 && s->tags == 2 ? 0x88a8 : 0x8100);
	p->inner_ip = p->frame + type + 2;
	p->inner_l4 = p->inner_ip;
	if (!s->inner_version) {
		put16(at + type, 0x0806);
		return type + 2 + 28;
	}
	put16(at + type, s->inner_version == 4 ? 0x0800 : 0x86dd);
	p->inner_l4 += ip_header_len(s->inner_version, s->inner_options);
	put_ip(p->bytes + p->inner_ip, s->inner_version, s->inner_options, s->protocol, transport);
	put_transport(p->bytes + p->inner_ip, p->bytes + p->inner_l4, s);
	return p->inner_l4 + transport - p->frame;
}

/* The VXLAN or Geneve header; OVN's option, which is critical, if Geneve is to have one. */
static inline void put_tunnel(uint8_t *at, const struct shape *s)
{
	if (s->geneve)
		put16(at + 2, 0x6558);
	else
		at[0] = 0x08;
	put16(at + 4, VNI >> 8);
	at[6] = VNI & 0xff;
	if (s->tunnel_options) {
		at[0] = s->tunnel_options / 4;
		at[1] = 0x40;
		memcpy(at + 8, "\x01\x02\x80", 3);
		at[11] = (uint8_t)(s->tunnel_options / 4 - 1);
	}
}

/** build() - a packet of shape @s with right checksums */
static inline struct packet build(const struct shape *s)
{
	struct packet p = { .udp = ip_header_len(s->version, s->options) };
	size_t udp_len;

	p.tunnel = p.udp + 8;
	p.frame = p.tunnel + 8 + s->tunnel_options;
	udp_len = p.frame - p.udp + put_frame(&p, s);
	p.len = p.udp + udp_len;
	put_ip(p.bytes, s->version, s->options, UDP, udp_len);
	put16(p.bytes + p.udp, SOURCE_PORT);
	put16(p.bytes + p.udp + 2, s->geneve ? GENEVE_PORT : VXLAN_PORT);
	put16(p.bytes + p.udp + 4, udp_len);
	put_tunnel(p.bytes + p.tunnel, s);
	set_outer_check(&p);
	return p;
}

#endif
