/* SPDX-License-Identifier: MIT */
/*
 * core - times repair() and other ways to sum the same bytes
 *
 *     core time               print NAME BYTES NANOSECONDS for each contender and packet size
 *     core run NAME BYTES N   run one contender N times and print nothing, for callgrind
 *     core backend            print the name of the checksum backend
 *
 * BYTES is the length of the outer IP packet. repair() gets the packet. The others sum its outer
 * UDP datagram, the same bytes that repair() sums.
 */
#define _GNU_SOURCE
#include "checksum.h"
#include "repair.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
	IP_BYTES = 20,
	UDP_BYTES = 8,
	VXLAN_BYTES = 8,
	ETH_BYTES = 14,
	INNER_AT = IP_BYTES + UDP_BYTES + VXLAN_BYTES + ETH_BYTES,
	PROVEN_BYTES = INNER_AT + IP_BYTES + UDP_BYTES, /* shorter packets have no inner UDP */
	PORT = 8472,
	PACKET_MAX = 9000,
	OFFSET = 36, /* of the packet in a cache line, as after netlink attributes */
	SLICE_NS = 3 * 1000 * 1000,
};

static const size_t sizes[] = { 64, 142, 590, 1478, 8978 };
static const struct repair_policy policy = { .ports = {
	.named = true,
	.bits = { [PORT / 64] = (uint64_t)1 << PORT % 64 },
} };

static _Alignas(64) uint8_t memory[PACKET_MAX + 64];
static uint8_t *const packet = memory + OFFSET;
static uint16_t right_check, wrong_check;
static volatile uint32_t sink;

static void put16(uint8_t *at, unsigned value)
{
	at[0] = (uint8_t)(value >> 8);
	at[1] = (uint8_t)value;
}

/* Writes an IPv4 and a UDP header with checksums in front of existing payload. */
static void put_udp(uint8_t *ip, size_t len, unsigned port)
{
	const uint8_t addresses[8] = { 192, 0, 2, 1, 192, 0, 2, 2 };
	uint8_t *udp = ip + IP_BYTES;
	uint64_t sum;
	uint16_t check;

	memset(ip, 0, IP_BYTES + UDP_BYTES);
	ip[0] = 0x45;
	put16(ip + 2, (unsigned)len);
	ip[8] = 64;
	ip[9] = 17;
	memcpy(ip + 12, addresses, sizeof(addresses));
	check = checksum_finish(checksum_add_portable(ip, IP_BYTES));
	memcpy(ip + 10, &check, sizeof(check));
	put16(udp, 40000);
	put16(udp + 2, port);
	put16(udp + 4, (unsigned)len - IP_BYTES);
	sum = checksum_add_portable(ip + 12, 8) + checksum_add_portable(udp, len - IP_BYTES) +
	      htons(17) + htons((uint16_t)(len - IP_BYTES));
	check = checksum_finish(sum);
	memcpy(udp + 6, &check, sizeof(check));
}

static void make_packet(size_t len)
{
	for (size_t i = 0; i < len; i++)
		packet[i] = (uint8_t)(i * 151 + 7);
	memset(packet + IP_BYTES + UDP_BYTES, 0, VXLAN_BYTES);
	packet[IP_BYTES + UDP_BYTES] = 0x08;
	packet[IP_BYTES + UDP_BYTES + 6] = 1;
	put16(packet + INNER_AT - 2, 0x88b5); /* local experimental EtherType: unproven */
	if (len >= PROVEN_BYTES) {
		put16(packet + INNER_AT - 2, 0x0800);
		put_udp(packet + INNER_AT, len - INNER_AT, 53);
	}
	put_udp(packet, len, PORT);
	memcpy(&right_check, packet + IP_BYTES + 6, 2);
	wrong_check = right_check ^ htons(0x0101);
}

static void set_check(uint16_t check)
{
	memcpy(packet + IP_BYTES + 6, &check, 2);
}

static void verify(size_t len)
{
	sink = repair(packet, len, len, false, true, &policy).reason;
}

static void recompute(size_t len)
{
	set_check(wrong_check);
	sink = repair(packet, len, len, false, true, &policy).reason;
}

static void sum_ours(size_t len)
{
	sink = checksum_fold(checksum_add(packet + IP_BYTES, len - IP_BYTES));
}

__attribute__((noinline, optimize("no-tree-vectorize"))) static uint32_t
scalar_sum(const uint8_t *data, size_t len)
{
	uint32_t sum = 0;
	uint16_t word;
	size_t i;

	for (i = 0; i + 1 < len; i += 2) {
		memcpy(&word, data + i, 2);
		sum += word;
	}
	if (len & 1)
		sum += data[len - 1];
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

static void scalar(size_t len)
{
	sink = scalar_sum(packet + IP_BYTES, len - IP_BYTES);
}

#ifdef WITH_DPDK
uint16_t dpdk_debian(const void *data, size_t len);
uint16_t dpdk_native(const void *data, size_t len);

static void rte_debian(size_t len)
{
	sink = dpdk_debian(packet + IP_BYTES, len - IP_BYTES);
}

static void rte_native(size_t len)
{
	sink = dpdk_native(packet + IP_BYTES, len - IP_BYTES);
}
#endif

static const struct contender {
	const char *name;
	void (*once)(size_t len);
} contenders[] = {
	{ "repair-right", verify }, { "repair-wrong", recompute }, { "checksum_add", sum_ours },
#ifdef WITH_DPDK
	{ "rte_raw_cksum", rte_debian }, { "rte_raw_cksum-native", rte_native },
#endif
	{ "scalar", scalar },
};

enum { CONTENDERS = sizeof(contenders) / sizeof(*contenders) };

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void repeat(const struct contender *c, size_t len, size_t times)
{
	for (size_t i = 0; i < times; i++)
		c->once(len);
}

/* Nanoseconds per packet. Doubles the repetitions until they fill a slice. */
static double time_one(const struct contender *c, size_t len)
{
	uint64_t began, took;
	size_t times = 64;

	for (;; times *= 2) {
		began = now();
		repeat(c, len, times);
		took = now() - began;
		if (took > SLICE_NS)
			return (double)took / (double)times;
	}
}

/* Checks that a contender does what it is timed for. */
static void check(const struct contender *c, size_t len)
{
	uint16_t now_check;

	set_check(right_check);
	c->once(len);
	memcpy(&now_check, packet + IP_BYTES + 6, 2);
	if (now_check != right_check) {
		fprintf(stderr, "core: %s spoiled the checksum of %zu bytes\n", c->name, len);
		exit(1);
	}
	if (c->once == verify && sink != REPAIR_RIGHT) {
		fprintf(stderr, "core: %zu bytes were not found right\n", len);
		exit(1);
	}
	if (c->once == recompute && sink != REPAIR_RECOMPUTED && sink != REPAIR_RECOMPUTED_UNPROVEN) {
		fprintf(stderr, "core: %zu bytes were not repaired\n", len);
		exit(1);
	}
}

static void time_all(void)
{
	for (size_t s = 0; s < sizeof(sizes) / sizeof(*sizes); s++) {
		make_packet(sizes[s]);
		for (size_t c = 0; c < CONTENDERS; c++) {
			check(&contenders[c], sizes[s]);
			printf("%s %zu %.3f\n", contenders[c].name, sizes[s],
			       time_one(&contenders[c], sizes[s]));
		}
	}
}

static int run(const char *name, size_t len, size_t times)
{
	make_packet(len);
	for (size_t c = 0; c < CONTENDERS; c++) {
		if (strcmp(contenders[c].name, name))
			continue;
		repeat(&contenders[c], len, times);
		return 0;
	}
	fprintf(stderr, "core: no contender %s\n", name);
	return 2;
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "backend"))
		return puts(checksum_in_use.name) < 0;
	if (argc == 2 && !strcmp(argv[1], "time")) {
		time_all();
		return 0;
	}
	if (argc == 5 && !strcmp(argv[1], "run") && strtoul(argv[3], NULL, 10) <= PACKET_MAX)
		return run(argv[2], strtoul(argv[3], NULL, 10), strtoul(argv[4], NULL, 10));
	fprintf(stderr, "usage: core backend | time | run NAME BYTES TIMES\n");
	return 2;
}
