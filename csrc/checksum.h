/* SPDX-License-Identifier: MIT */
#ifndef CSUMFIX_CHECKSUM_H
#define CSUMFIX_CHECKSUM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * The Internet checksum (RFC 1071): one's-complement sums of 16-bit words.
 *
 * Words are summed as they lie in memory. One's-complement addition is independent of byte order
 * (RFC 1071, 2B): the sum of network-order data, stored without swapping, is in network order. A
 * "raw" sum is a plain 64-bit total that has not been folded yet. Raw sums of pieces that begin at
 * even offsets of one message may be added.
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

/** checksum_in_use - the fastest one for this CPU, chosen when the code is loaded */
extern struct checksum_backend checksum_in_use;

/**
 * checksum_add() - raw sum of @len bytes
 * @data: first byte; any alignment; may be NULL if @len is 0
 * @len:  bytes; if it is odd, a zero byte is added
 *
 * Return: the raw sum. It cannot overflow for lengths below 2^32.
 */
static inline uint64_t checksum_add(const void *data, size_t len)
{
	return checksum_in_use.add(data, len);
}

/**
 * checksum_choose() - switch checksum_add() to another implementation, for tests and benchmarks
 * @name: "avx512", "avx2" or "portable"
 *
 * Return: false if this CPU does not support it; then nothing changes. No other thread may sum
 * during the call.
 */
bool checksum_choose(const char *name);

/**
 * checksum_fold() - fold a raw sum into 16 bits
 *
 * Return: the one's-complement sum, in memory order. It is 0 only if @raw is 0. A message with a
 * right checksum sums to 0xffff.
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
 * checksum_finish() - compute the checksum field of a message
 * @raw: raw sum of the message with 0 in its checksum field
 *
 * Return: the field in memory order. For UDP the caller must replace 0 by 0xffff (RFC 768).
 */
static inline uint16_t checksum_finish(uint64_t raw)
{
	return (uint16_t)~checksum_fold(raw);
}

#endif
