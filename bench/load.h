/* SPDX-License-Identifier: MIT */
/* load.h - clock, window and output of the benchmark's senders and receivers */
#ifndef LOAD_H
#define LOAD_H

#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* A receiver continues this long after the window, so that its total can be compared with the
 * sender's. The TCP sender stays as long, so that its namespace's counters can still be read. */
static const uint64_t GRACE_NS = 100 * 1000 * 1000;

struct window {
	uint64_t from, to; /* nanoseconds of CLOCK_MONOTONIC */
	uint64_t inside, total, bad, overflows, late;
};

static inline void die(const char *what)
{
	fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
	exit(1);
}

static inline uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static inline void sleep_until(uint64_t at)
{
	struct timespec t = { .tv_sec = (time_t)(at / 1000000000),
			      .tv_nsec = (long)(at % 1000000000) };

	(void)clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static inline struct window window_of(char **arg)
{
	return (struct window){ .from = strtoull(arg[0], NULL, 10),
				.to = strtoull(arg[1], NULL, 10) };
}

static inline int is_inside(const struct window *w, uint64_t at)
{
	return at >= w->from && at < w->to;
}

static inline void count(struct window *w, uint64_t at, uint64_t amount)
{
	w->total += amount;
	if (is_inside(w, at))
		w->inside += amount;
}

static inline int print(const struct window *w)
{
	return printf("%llu %llu %llu %llu %llu\n", (unsigned long long)w->inside,
		      (unsigned long long)w->total, (unsigned long long)w->bad,
		      (unsigned long long)w->overflows, (unsigned long long)w->late) < 0;
}

static inline struct sockaddr_in address(const char *host, const char *port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port)) };

	if (inet_pton(AF_INET, host, &a.sin_addr) != 1)
		die(host);
	return a;
}

/* The content of all loads repeats after PERIOD bytes. Each byte differs from its neighbours. */
enum { PERIOD = 256 };

static inline void fill(uint8_t *bytes, size_t length)
{
	for (size_t i = 0; i < length; i++)
		bytes[i] = (uint8_t)(i * 151 + 7);
}

static inline void say_ready(void)
{
	printf("ready\n");
	fflush(stdout);
}

#endif
