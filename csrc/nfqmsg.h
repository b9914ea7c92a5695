/* SPDX-License-Identifier: MIT */
#ifndef CSUMFIX_NFQMSG_H
#define CSUMFIX_NFQMSG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * nfnetlink_queue messages <-> structs, on the caller's buffers. Pure: no socket, no allocation.
 * Formats: linux/netfilter/nfnetlink_queue.h, net/netfilter/nfnetlink_queue.c. Numbers in structs
 * are in host order.
 */

enum nfqmsg_kind {
	NFQMSG_PACKET,    /* a queued packet */
	NFQMSG_STATUS,    /* an acknowledgement (error 0) or the refusal of a request of ours */
	NFQMSG_OTHER,     /* well-formed, not for us */
	NFQMSG_MALFORMED, /* a length in it is wrong; nothing after it can be read */
};

/**
 * struct nfqmsg - one message from the kernel
 * @kind:  which of the others are filled in
 * @error: STATUS: 0 or a negative errno
 * @request: STATUS: netlink type of the request it answers
 * @sequence: STATUS: number that the request carried
 * @id:    PACKET: names it in verdicts; rises from packet to packet of a queue
 * @partial: PACKET: its checksum is partial (not computed yet), or it is a GSO packet
 * @payload: PACKET: from the IP header on; NULL if the message had none
 * @caplen: PACKET: bytes at @payload
 * @wirelen: PACKET: bytes the packet has; more than @caplen if it was not copied whole
 * @headroom: PACKET: bytes of this message in front of @payload
 */
struct nfqmsg {
	enum nfqmsg_kind kind;
	int error;
	uint16_t request;
	uint32_t sequence;
	uint32_t id;
	bool partial;
	uint8_t *payload;
	size_t caplen;
	size_t wirelen;
	size_t headroom;
};

/**
 * nfqmsg_next() - decode the message at *@at and move *@at behind it
 * @buf: one datagram from the netlink socket, aligned to 4 bytes
 * @len: its length
 * @at:  offset; begin with 0
 *
 * Return: false when nothing is left, else @msg is filled in. A malformed message is the last.
 */
bool nfqmsg_next(uint8_t *buf, size_t len, size_t *at, struct nfqmsg *msg);

enum {
	NFQMSG_ACCEPT_LEN = 32,
	NFQMSG_PARAMS_LEN = 48,
	NFQMSG_NOOP_LEN = 16,
	NFQMSG_REPLACE_HEADROOM = 36, /* what nfqmsg_replace() needs in front of the payload */
};

/**
 * nfqmsg_accept_until() - accept, as they are, all packets of @queue up to and including @id
 * @buf: NFQMSG_ACCEPT_LEN bytes, aligned to 4
 */
void nfqmsg_accept_until(uint8_t *buf, uint16_t queue, uint32_t id);

/** nfqmsg_replaceable() - is there room in front of @msg's payload for nfqmsg_replace()? */
static inline bool nfqmsg_replaceable(const struct nfqmsg *msg)
{
	return msg->headroom >= NFQMSG_REPLACE_HEADROOM;
}

/**
 * nfqmsg_replace() - accept the packet @msg with its payload as it now is
 * @msg:    a NFQMSG_PACKET with at least NFQMSG_REPLACE_HEADROOM headroom
 * @queue:  its queue
 * @length: set to the length of the verdict, a multiple of 4
 *
 * The verdict is built in place: its headers overwrite the headers of the message that brought
 * the packet, so that the payload, which follows both, is not copied. @msg's buffer must have
 * 3 writable bytes behind the payload for padding.
 *
 * Return: start of the verdict.
 */
uint8_t *nfqmsg_replace(const struct nfqmsg *msg, uint16_t queue, size_t *length);

/**
 * nfqmsg_params() - set the copy range and fail-open of @queue, and ask for an acknowledgement
 * @buf: NFQMSG_PARAMS_LEN bytes, aligned to 4
 * @range: bytes of each packet to copy
 *
 * Copies packets without NFQA_CFG_F_GSO, so that the kernel finishes checksums and segments
 * GSO packets before it queues them; NFQA_CFG_F_FAIL_OPEN accepts what does not fit.
 */
void nfqmsg_params(uint8_t *buf, uint16_t queue, uint32_t range);

/**
 * nfqmsg_noop() - a message that does nothing but be acknowledged
 * @buf: NFQMSG_NOOP_LEN bytes, aligned to 4
 * @sequence: the acknowledgement will carry it
 */
void nfqmsg_noop(uint8_t *buf, uint32_t sequence);

/** nfqmsg_is_verdict() - is @request, of a NFQMSG_STATUS, one of the verdicts made here? */
bool nfqmsg_is_verdict(uint16_t request);

/** nfqmsg_is_params() - is @request, of a NFQMSG_STATUS, made by nfqmsg_params()? */
bool nfqmsg_is_params(uint16_t request);

/** nfqmsg_is_noop() - is @request, of a NFQMSG_STATUS, made by nfqmsg_noop()? */
bool nfqmsg_is_noop(uint16_t request);

#endif
