/* SPDX-License-Identifier: MIT */
#ifndef CSUMFIX_CHECKSUM_H
#define CSUMFIX_CHECKSUM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * The Internet checksum (RFC 1071): one's-complement sums of 16-bit words.
 *
 * Sums are taken over the words as they lie in memory. One's-complement addition does not care
 * about byte order, so a sum of network-order data, stored back without swapping, is in network
 * order again. A "raw" sum is a plain 64-bit total that has not been folded yet; raw sums of
 * pieces that begin at even offsets of one message may simply be added.
 */

/** checksum_add_portable() - raw sum in plain C: the reference for every other implementation */
uint64_t checksum_add_portable(const void *data, size_t len);

/**
 * struct checksum_backend - one implementation
 * @name: "avx512", "avx2" or "portable"
 * @add:  see checksum_add()
 */
struct checksum_backend {
	const char *name;
	uint64_t (*add)(const void *data, size_t len);
};

/** checksum_in_use - the fastest that this CPU has, chosen once when the code is loaded */
extern struct checksum_backend checksum_in_use;

/**
 * checksum_add() - raw sum of @len bytes
 * @data: first byte; any alignment; may be NULL if @len is 0
 * @len:  bytes; an odd last byte counts as if a zero byte followed it
 *
 * Return: the raw sum. It cannot overflow for lengths below 2^32.
 */
static inline uint64_t checksum_add(const void *data, size_t len)
{
	return checksum_in_use.add(data, len);
}

/**
 * checksum_choose() - have checksum_add() run another implementation, for tests and benchmarks
 * @name: "avx512", "avx2" or "portable"
 *
 * Return: false, and nothing changes, if this CPU has no such thing. Not for use while another
 * thread sums.
 */
bool checksum_choose(const char *name);

/**
 * checksum_fold() - fold a raw sum into 16 bits
 *
 * Return: the one's-complement sum, in memory order. 0 only if @raw is 0; a message whose
 * checksum is right sums to 0xffff.
 */
static inline uint16_t checksum_fold(uint64_t raw)
{
	raw = (raw & 0xffffffff) + (raw >> 32);
	raw = (raw & 0xffffffff) + (raw >> 32);
	raw = (raw & 0xffff) + (raw >> 16);
	raw = (raw & 0xffff) + (raw >> 16);
	return (uint16_t)((raw & 0xffff) + (raw >> 16));
}

/**
 * checksum_finish() - the checksum field that makes a message right
 * @raw: raw sum of the message with its checksum field taken as 0
 *
 * Return: the field in memory order. For UDP the caller must send 0 as 0xffff (RFC 768).
 */
static inline uint16_t checksum_finish(uint64_t raw)
{
	return (uint16_t)~checksum_fold(raw);
}

#endif
