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
	NFQMSG_STATUS,    /* the kernel acknowledges (error 0) or refuses one of our requests */
	NFQMSG_OTHER,     /* well-formed, of another type */
	NFQMSG_MALFORMED, /* it holds a wrong length, so nothing after it can be read */
};

/**
 * struct nfqmsg - one message from the kernel
 * @kind:  says which of the other members are set
 * @error: STATUS: 0 or a negative errno
 * @request: STATUS: netlink type of the request that it answers
 * @sequence: STATUS: sequence number of that request
 * @id:    PACKET: its id in verdicts; each packet of a queue has the next higher one
 * @partial: PACKET: its checksum is partial (not computed yet), or it is a GSO packet
 * @payload: PACKET: from the IP header on; NULL if the message had none
 * @caplen: PACKET: bytes at @payload
 * @wirelen: PACKET: length of the packet; more than @caplen if it was not copied whole
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
 * nfqmsg_next() - decode the message at *@at and move *@at past it
 * @buf: one datagram from the netlink socket, aligned to 4 bytes
 * @len: its length
 * @at:  offset; begin with 0
 *
 * Return: true if there was a message, which is in @msg. A malformed message is the last one.
 */
bool nfqmsg_next(uint8_t *buf, size_t len, size_t *at, struct nfqmsg *msg);

enum {
	NFQMSG_ACCEPT_LEN = 32,
	NFQMSG_PARAMS_LEN = 48,
	NFQMSG_NOOP_LEN = 16,
	NFQMSG_REPLACE_HEADROOM = 36, /* what nfqmsg_replace() needs in front of the payload */
};

/**
 * nfqmsg_accept_until() - accept all packets of @queue up to and including @id, unchanged
 * @buf: NFQMSG_ACCEPT_LEN bytes, aligned to 4
 */
void nfqmsg_accept_until(uint8_t *buf, uint16_t queue, uint32_t id);

/** nfqmsg_replaceable() - is there room in front of @msg's payload for nfqmsg_replace()? */
static inline bool nfqmsg_replaceable(const struct nfqmsg *msg)
{
	return msg->headroom >= NFQMSG_REPLACE_HEADROOM;
}

/**
 * nfqmsg_replace() - accept the packet @msg with the payload that is now in its buffer
 * @msg:    a NFQMSG_PACKET with at least NFQMSG_REPLACE_HEADROOM headroom
 * @queue:  its queue
 * @length: set to the length of the verdict, a multiple of 4
 *
 * The verdict is built in place: its headers overwrite those of the message that brought the
 * packet, and the payload is not copied. @msg's buffer must have 3 writable bytes of padding after
 * the payload.
 *
 * Return: start of the verdict.
 */
uint8_t *nfqmsg_replace(const struct nfqmsg *msg, uint16_t queue, size_t *length);

/**
 * nfqmsg_params() - set the copy range and fail-open of @queue, and ask for an acknowledgement
 * @buf: NFQMSG_PARAMS_LEN bytes, aligned to 4
 * @range: bytes of each packet to copy
 *
 * NFQA_CFG_F_GSO is off, so the kernel computes partial checksums and segments GSO packets before
 * it queues them (nfqnl_build_packet_message() and nfqnl_enqueue_packet() in
 * net/netfilter/nfnetlink_queue.c). NFQA_CFG_F_FAIL_OPEN is on, so packets that find no room are
 * accepted.
 */
void nfqmsg_params(uint8_t *buf, uint16_t queue, uint32_t range);

/**
 * nfqmsg_noop() - a no-op request that asks for an acknowledgement
 * @buf: NFQMSG_NOOP_LEN bytes, aligned to 4
 * @sequence: number that the acknowledgement will carry
 */
void nfqmsg_noop(uint8_t *buf, uint32_t sequence);

/** nfqmsg_is_verdict() - is @request, of a NFQMSG_STATUS, one of the verdicts made here? */
bool nfqmsg_is_verdict(uint16_t request);

/** nfqmsg_is_params() - is @request, of a NFQMSG_STATUS, made by nfqmsg_params()? */
bool nfqmsg_is_params(uint16_t request);

/** nfqmsg_is_noop() - is @request, of a NFQMSG_STATUS, made by nfqmsg_noop()? */
bool nfqmsg_is_noop(uint16_t request);

#endif
