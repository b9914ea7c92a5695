/* SPDX-License-Identifier: MIT */
/* Every implementation of the Internet checksum against RFC 1071's definition, byte by byte. */
#include "checksum.h"
#include "harness.h"

/* RFC 1071, 4.1, in big-endian arithmetic. It shares nothing with the code under test. */
static uint16_t naive(const uint8_t *data, size_t len)
{
	uint32_t sum = 0;

	for (size_t i = 0; i < len; i++) {
		sum += i % 2 ? data[i] : (uint32_t)data[i] << 8;
		sum = (sum & 0xffff) + (sum >> 16);
	}
	return (uint16_t)((sum & 0xffff) + (sum >> 16));
}

static uint16_t big_endian(uint16_t in_memory)
{
	uint8_t bytes[2];

	memcpy(bytes, &in_memory, sizeof(bytes));
	return (uint16_t)(bytes[0] << 8 | bytes[1]);
}

static void check_sum(const uint8_t *data, size_t len)
{
	uint16_t expected = naive(data, len);

	CHECK(big_endian(checksum_fold(checksum_add(data, len))) == expected);
}

static void fill(uint8_t *data, size_t len, uint64_t seed)
{
	for (size_t i = 0; i < len; i++)
		data[i] = (uint8_t)next_random(&seed);
}

/* A guard page catches reads past either end, at every alignment to a vector. */
static void every_length_and_alignment(void)
{
	static uint8_t bytes[300 + 32];

	fill(bytes, sizeof(bytes), 1);
	for (size_t len = 0; len <= 300; len++) {
		check_sum(guard_behind(bytes, len), len);
		check_sum(guard_before(bytes, len), len);
		for (size_t offset = 0; offset < 32; offset++)
			check_sum(guard_before(bytes, len + offset) + offset, len);
	}
}

static void big_lengths(void)
{
	static const size_t lengths[] = { 1500, 8950, 9001, 65507, 65534, 65535, 65536, 131071 };
	static uint8_t bytes[131071];

	for (int pattern = 0; pattern < 3; pattern++) {
		if (pattern == 0)
			fill(bytes, sizeof(bytes), 2);
		else
			memset(bytes, pattern == 1 ? 0xff : 0, sizeof(bytes));
		for (size_t i = 0; i < COUNT_OF(lengths); i++)
			check_sum(guard_behind(bytes, lengths[i]), lengths[i]);
	}
}

/* Folding raw sums: carries, and the two zeros of one's complement. */
static void folding(void)
{
	static const struct {
		uint64_t raw;
		uint16_t folded;
	} cases[] = {
		{ 0, 0 },
		{ 1, 1 },
		{ 0xffff, 0xffff },
		{ 0x10000, 1 },
		{ 0x1fffe, 0xffff },
		{ 0x1ffff, 1 },
		{ 0xffffffff, 0xffff },
		{ 0x100000000, 1 },
		{ 0xffff0000ffff0001, 1 },
		{ 0xffffffffffff0000, 0xffff },
		{ UINT64_MAX, 0xffff },
	};

	for (size_t i = 0; i < COUNT_OF(cases); i++) {
		uint16_t inverse = (uint16_t)~cases[i].folded;

		CHECK(checksum_fold(cases[i].raw) == cases[i].folded);
		CHECK(checksum_finish(cases[i].raw) == inverse);
	}
}

/* RFC 1071, 3: the example; RFC 1624, 4: the field that incremental updates got wrong. */
static void known_values(void)
{
	static const uint8_t rfc1071[] = { 0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7 };
	static const uint8_t rfc1624[] = { 0xcd, 0x7a, 0x32, 0x85 }; /* checksum 0x0000 */
	static const uint8_t odd[] = { 0x12, 0x34, 0x56 };

	CHECK(big_endian(checksum_fold(checksum_add(rfc1071, sizeof(rfc1071)))) == 0xddf2);
	CHECK(big_endian(checksum_finish(checksum_add(rfc1624, sizeof(rfc1624)))) == 0);
	CHECK(big_endian(checksum_fold(checksum_add(odd, sizeof(odd)))) == 0x1234 + 0x5600);
	CHECK(checksum_add(NULL, 0) == 0);
}

/* A message with its checksum sums to 0xffff, at whichever even offset it is cut in pieces. */
static void pieces_add_up(void)
{
	uint8_t bytes[129];

	fill(bytes, sizeof(bytes), 3);
	for (size_t cut = 0; cut <= sizeof(bytes); cut += 2) {
		uint16_t check;
		uint64_t raw;

		memset(bytes + 6, 0, sizeof(check));
		raw = checksum_add(bytes, cut) + checksum_add(bytes + cut, sizeof(bytes) - cut);
		check = checksum_finish(raw);
		memcpy(bytes + 6, &check, sizeof(check));
		CHECK(checksum_fold(checksum_add(bytes, sizeof(bytes))) == 0xffff);
	}
}

int main(void)
{
	static const char *const backends[] = { "portable", "avx2", "avx512" };

	for (size_t i = 0; i < sizeof(backends) / sizeof(*backends); i++) {
		if (!checksum_choose(backends[i])) {
			printf("checksum: this CPU has no %s\n", backends[i]);
			continue;
		}
		every_length_and_alignment();
		big_lengths();
		folding();
		known_values();
		pieces_add_up();
		printf("checksum: all right with %s\n", checksum_in_use.name);
	}
	return 0;
}
