/* SPDX-License-Identifier: MIT */
#include "tunnel.h"

enum {
	HEADER_LEN = 8, /* of both protocols; Geneve's options follow */
	VNI_OFFSET = 4,

	VXLAN_NEXT_IPV4 = 1,
	VXLAN_NEXT_IPV6 = 2,
	VXLAN_NEXT_ETHERNET = 3,

	GENEVE_VERSION = 0xc0,     /* of the first byte; 0 is the only one there is */
	GENEVE_OPTIONS_LEN = 0x3f, /* of the first byte, in words */
	GENEVE_CONTROL = 0x80,     /* of the second byte */
	GENEVE_OPTION_HEADER_LEN = 4,
	GENEVE_OPTION_LEN =
	    0x1f, /* of an option's last header byte, in words, without the header */
};

/* Bits of the first word of a VXLAN header, and the bits that an extension uses besides its own. */
static const uint32_t VXLAN_GROUP = 0x80000000, VXLAN_GROUP_USES = 0x00ffffff;
static const uint32_t VXLAN_VNI = 0x08000000;
static const uint32_t VXLAN_NEXT_PROTOCOL = 0x04000000, VXLAN_NEXT_PROTOCOL_USES = 0x000000ff;
static const uint32_t VXLAN_REMOTE_CHECKSUM = 0x00200000;

/*
 * Are all bits that are set known? RFC 7348 would have a receiver ignore the reserved ones, but
 * Linux drops such a packet, so that extensions can be added (vxlan_rcv() in
 * drivers/net/vxlan/vxlan_core.c). An extension may well say that the payload is something else:
 * GPE's version and OAM bits do. Group policy and next protocol exclude each other, because they
 * use the same byte.
 */
static bool vxlan_is_known(uint32_t flags, uint8_t behind_vni)
{
	bool group = flags & VXLAN_GROUP, next = flags & VXLAN_NEXT_PROTOCOL;
	uint32_t known = VXLAN_VNI | VXLAN_REMOTE_CHECKSUM;

	if (group)
		known |= VXLAN_GROUP | VXLAN_GROUP_USES;
	if (next)
		known |= VXLAN_NEXT_PROTOCOL | VXLAN_NEXT_PROTOCOL_USES;
	return !(flags & ~known) && !(group && next) &&
	       (!behind_vni || flags & VXLAN_REMOTE_CHECKSUM);
}

static uint16_t vxlan_ethertype(const uint8_t *header)
{
	uint32_t flags = load_be32(header);

	if (!vxlan_is_known(flags, header[HEADER_LEN - 1]))
		return ETHERTYPE_UNKNOWN;
	switch (flags & VXLAN_NEXT_PROTOCOL ? header[3] : VXLAN_NEXT_ETHERNET) {
	case VXLAN_NEXT_ETHERNET:
		return ETHERTYPE_BRIDGING;
	case VXLAN_NEXT_IPV4:
		return ETHERTYPE_IPV4;
	case VXLAN_NEXT_IPV6:
		return ETHERTYPE_IPV6;
	default: /* NSH, MPLS and so on */
		return ETHERTYPE_UNKNOWN;
	}
}

static bool vxlan_parse(struct view v, const uint8_t *header, struct tunnel_packet *vxlan)
{
	uint32_t flags = load_be32(header);

	if (!(flags & VXLAN_VNI) || !view_skip(v, HEADER_LEN, &vxlan->inner))
		return false;
	vxlan->remote_checksum = flags & VXLAN_REMOTE_CHECKSUM;
	vxlan->ethertype = vxlan_ethertype(header);
	return true;
}

/* Options that do not end where the header says make a packet invalid (RFC 8926, 3.5). */
static bool geneve_options_fit(struct view options)
{
	size_t at = 0;

	while (at < options.len) {
		const uint8_t *option = view_at(options, at, GENEVE_OPTION_HEADER_LEN);

		if (!option)
			return false;
		at += GENEVE_OPTION_HEADER_LEN + (size_t)(option[3] & GENEVE_OPTION_LEN) * 4;
	}
	return at == options.len;
}

/*
 * Nobody on the way may interpret the payload of a control message (RFC 8926, 3.4), so it is not
 * even checked. Reserved bits are to be ignored, and Linux does (geneve_udp_encap_recv() in
 * drivers/net/geneve.c).
 */
static uint16_t geneve_ethertype(const uint8_t *header)
{
	uint16_t type = load_be16(header + 2);

	if (header[1] & GENEVE_CONTROL)
		return ETHERTYPE_UNKNOWN;
	switch (type) {
	case ETHERTYPE_BRIDGING:
	case ETHERTYPE_IPV4:
	case ETHERTYPE_IPV6:
		return type;
	default:
		return ETHERTYPE_UNKNOWN;
	}
}

static bool geneve_parse(struct view v, const uint8_t *header, struct tunnel_packet *geneve)
{
	size_t len = (size_t)(header[0] & GENEVE_OPTIONS_LEN) * 4;
	struct view options;

	if (header[0] & GENEVE_VERSION || !view_cut(v, HEADER_LEN, len, &options) ||
	    !geneve_options_fit(options) || !view_skip(v, HEADER_LEN + len, &geneve->inner))
		return false;
	geneve->remote_checksum = false;
	geneve->ethertype = geneve_ethertype(header);
	return true;
}

bool tunnel_parse(enum tunnel_protocol protocol, struct view v, struct tunnel_packet *tunnel)
{
	const uint8_t *header = view_at(v, 0, HEADER_LEN);

	if (!header)
		return false;
	tunnel->vni = load_be32(header + VNI_OFFSET) >> 8;
	return protocol == TUNNEL_GENEVE ? geneve_parse(v, header, tunnel)
					 : vxlan_parse(v, header, tunnel);
}
