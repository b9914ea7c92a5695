/* SPDX-License-Identifier: MIT */
#include "checksum.h"

#include <string.h>

#ifdef __x86_64__
#include <immintrin.h>
#endif

static inline uint32_t load32(const uint8_t *p)
{
	uint32_t word;

	memcpy(&word, p, sizeof(word));
	return word;
}

/* The last 0 to 3 bytes, padded with zeros to a word. */
static inline uint32_t load_tail(const uint8_t *p, size_t len)
{
	uint32_t word = 0;

	if (len)
		memcpy(&word, p, len);
	return word;
}

/* Sums 32-bit words: each holds two 16-bit words, and folding later adds the halves. */
uint64_t checksum_add_portable(const void *data, size_t len)
{
	const uint8_t *p = data;
	uint64_t even = 0, odd = 0;

	for (; len >= 16; p += 16, len -= 16) {
		even += (uint64_t)load32(p) + load32(p + 8);
		odd += (uint64_t)load32(p + 4) + load32(p + 12);
	}
	for (; len >= 4; p += 4, len -= 4)
		even += load32(p);
	return even + odd + load_tail(p, len);
}

#ifdef __x86_64__

enum { ALIGN_FROM = 512 }; /* bytes from which aligned loads are faster */

/*
 * Four lanes of 64 bits. @total is the sum of all 64-bit words modulo 2^64, @high the exact sum of
 * their upper halves. The exact sum of the lower halves follows from both, which is cheaper than
 * masking each word.
 */
struct lanes {
	__m256i total;
	__m256i high;
};

__attribute__((target("avx2"))) static inline void lanes_add(struct lanes *lanes, __m256i words)
{
	lanes->total = _mm256_add_epi64(lanes->total, words);
	lanes->high = _mm256_add_epi64(lanes->high, _mm256_srli_epi64(words, 32));
}

__attribute__((target("avx2"))) static inline uint64_t lanes_sum(const struct lanes *lanes)
{
	__m256i low = _mm256_sub_epi64(lanes->total, _mm256_slli_epi64(lanes->high, 32));
	__m256i sum = _mm256_add_epi64(low, lanes->high);
	__m128i half = _mm_add_epi64(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));

	return (uint64_t)_mm_cvtsi128_si64(half) + (uint64_t)_mm_extract_epi64(half, 1);
}

/* Up to 7 whole 32-bit words at @p; a masked load does not access memory after them. */
__attribute__((target("avx2"))) static inline __m256i load_words(const uint8_t *p, size_t words)
{
	const __m256i place = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
	__m256i wanted = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)words), place);

	return _mm256_maskload_epi32((const int *)p, wanted);
}

/* Two sets of lanes hide the latency of the additions. More sets were measured to gain nothing. */
__attribute__((target("avx2"))) static uint64_t add_avx2(const void *data, size_t len)
{
	struct lanes a = { _mm256_setzero_si256(), _mm256_setzero_si256() }, b = a;
	const uint8_t *p = data;

	for (; len >= 64; p += 64, len -= 64) {
		lanes_add(&a, _mm256_loadu_si256((const __m256i *)p));
		lanes_add(&b, _mm256_loadu_si256((const __m256i *)(p + 32)));
	}
	if (len >= 32) {
		lanes_add(&a, _mm256_loadu_si256((const __m256i *)p));
		p += 32;
		len -= 32;
	}
	lanes_add(&b, load_words(p, len / 4));
	return lanes_sum(&a) + lanes_sum(&b) + load_tail(p + len / 4 * 4, len % 4);
}

/* As struct lanes, with eight lanes. */
struct lanes512 {
	__m512i total;
	__m512i high;
};

#define AVX512 __attribute__((target("avx512f,avx512bw")))

AVX512 static inline void lanes512_add(struct lanes512 *lanes, __m512i words)
{
	lanes->total = _mm512_add_epi64(lanes->total, words);
	lanes->high = _mm512_add_epi64(lanes->high, _mm512_srli_epi64(words, 32));
}

/* Up to 63 bytes at @p, padded with zeros. */
AVX512 static inline __m512i load_bytes(const uint8_t *p, size_t len)
{
	return _mm512_maskz_loadu_epi8(((uint64_t)1 << len) - 1, p);
}

AVX512 static uint64_t add_avx512(const void *data, size_t len)
{
	struct lanes512 a = { _mm512_setzero_si512(), _mm512_setzero_si512() }, b = a;
	const uint8_t *p = data;
	size_t head = -(uintptr_t)p % 64;
	__m512i total, high, low;

	/* Each unaligned load touches two cache lines. After an odd head, the bytes of all words
	 * would be swapped. */
	if (len >= ALIGN_FROM && head % 2 == 0) {
		lanes512_add(&a, load_bytes(p, head));
		p += head;
		len -= head;
	}
	for (; len >= 128; p += 128, len -= 128) {
		lanes512_add(&a, _mm512_loadu_si512(p));
		lanes512_add(&b, _mm512_loadu_si512(p + 64));
	}
	if (len >= 64) {
		lanes512_add(&a, _mm512_loadu_si512(p));
		p += 64;
		len -= 64;
	}
	lanes512_add(&b, load_bytes(p, len));
	total = _mm512_add_epi64(a.total, b.total);
	high = _mm512_add_epi64(a.high, b.high);
	low = _mm512_sub_epi64(total, _mm512_slli_epi64(high, 32));
	return (uint64_t)_mm512_reduce_add_epi64(_mm512_add_epi64(low, high));
}

#endif

struct checksum_backend checksum_in_use = { "portable", checksum_add_portable };

static void use(const char *name, uint64_t (*add)(const void *data, size_t len))
{
	checksum_in_use = (struct checksum_backend){ name, add };
}

bool checksum_choose(const char *name)
{
#ifdef __x86_64__
	__builtin_cpu_init();
	if (!strcmp(name, "avx512") && __builtin_cpu_supports("avx512bw"))
		use("avx512", add_avx512);
	else if (!strcmp(name, "avx2") && __builtin_cpu_supports("avx2"))
		use("avx2", add_avx2);
#endif
	if (!strcmp(name, "portable"))
		use("portable", checksum_add_portable);
	return !strcmp(name, checksum_in_use.name);
}

__attribute__((constructor)) static void choose_fastest(void)
{
	if (!checksum_choose("avx512"))
		checksum_choose("avx2");
}
