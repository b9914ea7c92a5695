/* SPDX-License-Identifier: MIT */
#ifndef HARNESS_H
#define HARNESS_H

/*
 * What every C test needs: checks that report where they failed, memory that ends or begins at a
 * guard page, and pseudo-random numbers that are the same in every run.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Table-driven tests set this to the current row; a failure prints it. */
static const char *check_case = "";

#define CHECK(condition)                                                                          \
	do {                                                                                      \
		if (!(condition)) {                                                               \
			fprintf(stderr, "%s:%d: failed: %s %s\n", __FILE__, __LINE__, #condition, \
				check_case);                                                      \
			exit(1);                                                                  \
		}                                                                                 \
	} while (0)

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

enum { GUARDED_MAX = 160 * 1024 };

/* GUARDED_MAX bytes between two pages that can be neither read nor written. */
static inline uint8_t *guarded_memory(void)
{
	static uint8_t *memory;
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	uint8_t *start;

	if (memory)
		return memory;
	start = mmap(NULL, GUARDED_MAX + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(start != MAP_FAILED);
	CHECK(!mprotect(start + page, GUARDED_MAX, PROT_READ | PROT_WRITE));
	memory = start + page;
	return memory;
}

/** guard_behind() - copy @len bytes up to a guard page; valid until the next guard_*() */
static inline uint8_t *guard_behind(const void *bytes, size_t len)
{
	uint8_t *copy = guarded_memory() + GUARDED_MAX - len;

	return len ? memcpy(copy, bytes, len) : copy;
}

/** guard_before() - the same, but the copy begins at a guard page */
static inline uint8_t *guard_before(const void *bytes, size_t len)
{
	return len ? memcpy(guarded_memory(), bytes, len) : guarded_memory();
}

/** next_random() - xorshift64; the seed in @state must not be 0 */
static inline uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

#endif
