/* SPDX-License-Identifier: MIT */
/* The drain, one batch at a time: which verdicts it sends, in which order, and what it counts. */
#include "fake_kernel.h"

#include <time.h>

/* Counts this thread's allocations; exists only under a sanitizer. */
extern int __sanitizer_install_malloc_and_free_hooks(void (*)(const volatile void *, size_t),
						     void (*)(const volatile void *))
    __attribute__((weak));

/* Volatile, because the compiler assumes that malloc() changes no variable of the program. */
static volatile bool counting;
static volatile size_t allocations;

static void on_malloc(const volatile void *p, size_t len)
{
	(void)p;
	(void)len;
	allocations = allocations + counting;
}

static void on_free(const volatile void *p)
{
	(void)p;
	allocations = allocations + counting;
}

static void watch_allocations(void)
{
	void *volatile p;

	if (!__sanitizer_install_malloc_and_free_hooks)
		return;
	CHECK(__sanitizer_install_malloc_and_free_hooks(on_malloc, on_free));
	counting = true;
	p = malloc(1);
	free(p);
	counting = false;
	CHECK(allocations == 2);
	allocations = 0;
}

/* Runs the drain until it has answered everything queued so far. */
static void run_to_the_end(struct fake_kernel *k)
{
	int result;

	fake_kernel_end(k);
	counting = true;
	result = drain_run(k->drain);
	counting = false;
	CHECK(result == -ENODEV);
	CHECK(!allocations);
}

static void verdicts_and_counters(void)
{
	static const struct {
		const char *queued, *verdicts;
		uint64_t packets, recomputed, malformed, unexpected, refused;
	} rows[] = {
		{ "", "", 0, 0, 0, 0, 0 },
		{ "r", "A1", 1, 0, 0, 0, 0 },
		{ "w", "R1", 1, 1, 0, 0, 0 },
		{ "rrr", "A3", 3, 0, 0, 0, 0 },
		{ "www", "R1 R2 R3", 3, 3, 0, 0, 0 },
		{ "rrwrw", "A2 R3 A4 R5", 5, 2, 0, 0, 0 },
		{ "wwrr", "R1 R2 A4", 4, 2, 0, 0, 0 },
		{ "r+w+r", "A1 R2 A3", 3, 1, 0, 0, 0 },
		{ "rw+wr+w", "A1 R2 R3 A4 R5", 5, 3, 0, 0, 0 },
		/* packets that cannot be repaired share the batch verdict */
		{ "cpthrw", "A5 R6", 6, 1, 0, 0, 0 },
		/* other messages do not split batch verdicts; whatever follows a malformed message
		 * in a datagram is lost */
		{ "rmr", "A2", 2, 0, 1, 0, 0 },
		{ "wmrow", "R1 A2 R3", 3, 2, 1, 1, 0 },
		{ "m", "", 0, 0, 1, 0, 0 },
		{ "r+m+w", "A1", 1, 0, 1, 0, 0 },
		{ "o+w+o+o", "R1", 1, 1, 0, 3, 0 },
		/* a refused verdict does not stop the drain */
		{ "reaw", "A1 R2", 2, 1, 0, 0, 1 },
		{ "e+e+r", "A1", 1, 0, 0, 0, 2 },
	};

	for (size_t i = 0; i < COUNT_OF(rows); i++) {
		struct fake_kernel k = fake_kernel_new();
		struct drain_stats stats;

		check_case = rows[i].queued;
		fake_kernel_queue(&k, rows[i].queued);
		run_to_the_end(&k);
		CHECK(!strcmp(fake_kernel_verdicts(&k), rows[i].verdicts));
		stats = stats_of(&k);
		CHECK(stats.packets == rows[i].packets);
		CHECK(stats.reasons[REPAIR_RECOMPUTED] == rows[i].recomputed);
		CHECK(stats.malformed == rows[i].malformed);
		CHECK(stats.unexpected == rows[i].unexpected);
		CHECK(stats.verdict_errors == rows[i].refused + 1); /* the one that ended the run */
		CHECK(stats.batches == 1);
		CHECK(stats.sends == (*rows[i].verdicts != 0));
		CHECK(!stats.send_errors && !stats.overruns && !stats.interrupts);
		fake_kernel_free(&k);
	}
	check_case = "";
}

static void reasons_and_bytes(void)
{
	static const enum repair_reason expected[] = {
		REPAIR_RIGHT,   REPAIR_RECOMPUTED, REPAIR_INNER_CORRUPT,
		REPAIR_PARTIAL, REPAIR_TRUNCATED,  REPAIR_NO_HEADROOM,
	};
	struct fake_kernel k = fake_kernel_new();
	size_t packet = 20 + 8 + 8 + 14 + 20 + 8 + k.payload;
	uint64_t reasons[REPAIR_REASONS] = { 0 };
	struct drain_stats stats;

	fake_kernel_queue(&k, "rwcpth");
	run_to_the_end(&k);
	stats = stats_of(&k);
	for (size_t i = 0; i < COUNT_OF(expected); i++)
		reasons[expected[i]]++; /* so they add up to the packets */
	CHECK(!memcmp(stats.reasons, reasons, sizeof(reasons)));
	CHECK(stats.bytes == 6 * packet + 1); /* "t" is one byte longer than its copy */
	fake_kernel_free(&k);
}

/* Queues a packet to @port: right, wrong, or wrong and corrupt inside. */
static void queue_to_port(struct fake_kernel *k, uint16_t port, char letter)
{
	static const struct shape shape = { 4, 0, 0, 4, 0, UDP, 4, false, 0 };
	static struct message m;
	struct packet p = build(&shape);
	size_t start;

	put16(p.bytes + p.udp + 2, port);
	set_outer_check(&p);
	if (letter != 'r')
		p.bytes[p.udp + 6] ^= 0x10;
	if (letter == 'c')
		p.bytes[p.len - 1] ^= 0x10;
	m.len = 0;
	start = begin_message(&m, PACKET_TYPE);
	put_packet_header(&m, ++k->last_id);
	put_attribute(&m, NFQA_PAYLOAD, p.bytes, p.len);
	end_message(&m, start);
	fake_kernel_send(k, &m);
}

static bool is_slot(const struct drain_port_stats *slot, uint64_t port, uint64_t packets,
		    uint64_t repaired, uint64_t left_wrong)
{
	return slot->port == port && slot->packets == packets && slot->repaired == repaired &&
	       slot->left_wrong == left_wrong;
}

/* Ports take slots in the order in which they are seen. Ports outside the policy take none. */
static void packets_by_port(void)
{
	struct fake_kernel k = fake_kernel_new();
	struct repair_policy policy = { .ports = ONLY_PORT(4789) };
	struct drain_stats stats;

	outer_ports_add(&policy.ports, 65535);
	outer_ports_add(&policy.ports, 1);
	drain_set_policy(k.drain, &policy);
	for (const char *c = "rrwc"; *c; c++)
		queue_to_port(&k, 65535, *c);
	queue_to_port(&k, VXLAN_PORT, 'w');
	queue_to_port(&k, 4789, 'w');
	queue_to_port(&k, 65535, 'w');
	fake_kernel_queue(&k, "pth");
	run_to_the_end(&k);
	stats = stats_of(&k);
	CHECK(is_slot(&stats.ports[0], 65535, 5, 2, 1));
	CHECK(is_slot(&stats.ports[1], 4789, 1, 1, 0));
	for (int i = 2; i <= DRAIN_PORTS; i++)
		CHECK(is_slot(&stats.ports[i], 0, 0, 0, 0));
	fake_kernel_free(&k);
}

/* Ports that find no free slot share the last one. */
static void more_ports_than_fit(void)
{
	enum { PORTS = DRAIN_PORTS + 3 };
	static const struct repair_policy any = { .fill_zero = false };
	struct fake_kernel k = fake_kernel_new();
	struct drain_stats stats;

	drain_set_policy(k.drain, &any);
	for (uint16_t port = 1; port <= PORTS; port++)
		queue_to_port(&k, port, "rwc"[port % 3]);
	queue_to_port(&k, PORTS, 'r');
	queue_to_port(&k, 0, 'r'); /* no valid tunnel port */
	queue_to_port(&k, 1, 'r');
	run_to_the_end(&k);
	stats = stats_of(&k);
	CHECK(is_slot(&stats.ports[0], 1, 2, 1, 0));
	for (uint16_t port = 2; port <= DRAIN_PORTS; port++)
		CHECK(is_slot(&stats.ports[port - 1], port, 1, port % 3 == 1, port % 3 == 2));
	CHECK(is_slot(&stats.ports[DRAIN_PORTS], 0, 4, 1, 1));
	CHECK(stats.packets == PORTS + 3);
	fake_kernel_free(&k);
}

/* A policy is copied, and applies to the packets received after it was set. */
static void new_policy(void)
{
	struct fake_kernel k = fake_kernel_new();
	struct repair_policy policy = { .ports = ONLY_PORT(4789) };

	fake_kernel_queue(&k, "w");
	drain_set_policy(k.drain, &policy);
	memset(&policy, 0xff, sizeof(policy));
	run_to_the_end(&k);
	CHECK(stats_of(&k).reasons[REPAIR_OTHER_PORT] == 1);
	drain_set_policy(k.drain, &vxlan_policy);
	fake_kernel_queue(&k, "w");
	run_to_the_end(&k);
	CHECK(stats_of(&k).reasons[REPAIR_RECOMPUTED] == 1);
	fake_kernel_free(&k);
}

/* Pairs of r and w, all in one datagram: more verdicts than fit in one send. */
static void more_verdicts_than_fit(void)
{
	enum { PAIRS = 200 };
	struct fake_kernel k = fake_kernel_new();
	static char letters[4 * PAIRS + 1], expected[WORDS_MAX];
	size_t used = 0;

	for (unsigned int i = 0; i < PAIRS; i++) {
		memcpy(letters + 4 * i, "r+w+", 4);
		used += (size_t)snprintf(expected + used, sizeof(expected) - used, "%sA%u R%u",
					 i ? " " : "", 2 * i + 1, 2 * i + 2);
	}
	letters[4 * PAIRS - 1] = 0;
	fake_kernel_queue(&k, letters);
	run_to_the_end(&k);
	CHECK(!strcmp(fake_kernel_verdicts(&k), expected));
	CHECK(stats_of(&k).sends == 4); /* each of at most 128 verdicts; pairs may be split */
	fake_kernel_free(&k);
}

/* Appends one verdict to @words. */
static void expect(char *words, char verdict, uint32_t id)
{
	size_t used = strlen(words);

	snprintf(words + used, WORDS_MAX - used, "%s%c%u", used ? " " : "", verdict, id);
}

/* Numbers of verdicts around the limit, with batch verdicts after them. */
static void about_as_many_verdicts_as_fit(void)
{
	static const char *const endings[] = { "", "r", "r+w", "w+r", "w+r+w+r", "r+r+w+w+r+w+r" };

	for (uint32_t before = 120; before <= 130; before++) {
		for (size_t i = 0; i < COUNT_OF(endings); i++) {
			static char letters[512], expected[WORDS_MAX];
			struct fake_kernel k = fake_kernel_new();
			uint32_t id = before;

			letters[0] = expected[0] = 0;
			for (uint32_t n = 1; n <= before; n++) {
				strcat(letters, n == before && !*endings[i] ? "w" : "w+");
				expect(expected, 'R', n);
			}
			strcat(letters, endings[i]);
			for (const char *c = endings[i]; *c; c++) {
				if (*c == '+')
					continue;
				id++;
				if (*c == 'w' || c[1] != '+' || c[2] == 'w')
					expect(expected, *c == 'w' ? 'R' : 'A', id);
			}
			fake_kernel_queue(&k, letters);
			run_to_the_end(&k);
			CHECK(!strcmp(fake_kernel_verdicts(&k), expected));
			CHECK(!stats_of(&k).send_errors);
			fake_kernel_free(&k);
		}
	}
}

/* More datagrams than one batch holds; the next batch uses the same slots. */
static void more_datagrams_than_fit(void)
{
	enum { DATAGRAMS = 100 };
	struct fake_kernel k = fake_kernel_new();
	static char letters[DATAGRAMS + 1];
	struct drain_stats stats;
	const char *words;

	memset(letters, 'r', DATAGRAMS);
	letters[10] = letters[70] = 'w';
	fake_kernel_queue(&k, letters);
	run_to_the_end(&k);
	words = fake_kernel_verdicts(&k);
	CHECK(!strcmp(words, "A10 R11 A64 A70 R71 A100"));
	stats = stats_of(&k);
	CHECK(stats.batches == 2 && stats.sends == 2);
	fake_kernel_free(&k);
}

/* Replacements that exceed the limit of one message are sent in several. */
static void more_bytes_than_fit(void)
{
	struct fake_kernel k = fake_kernel_new();

	k.payload = PACKET_MAX - 100;
	fake_kernel_queue(&k, "rwwwwwwwwwwwwwwwwwwwwwwwr");
	run_to_the_end(&k);
	CHECK(!strcmp(fake_kernel_verdicts(&k),
		      "A1 R2 R3 R4 R5 R6 R7 R8 R9 R10 R11 R12 R13 R14 R15 R16 R17 R18 R19 R20 R21 "
		      "R22 R23 R24 A25"));
	CHECK(stats_of(&k).sends == 2);
	fake_kernel_free(&k);
}

/* A datagram longer than any from the kernel arrives truncated. */
static void too_long_a_datagram(void)
{
	static struct message m;
	static uint8_t bytes[0xffff - 4];
	struct fake_kernel k = fake_kernel_new();
	size_t start = begin_message(&m, PACKET_TYPE);

	put_packet_header(&m, 1);
	put_attribute(&m, NFQA_CT, bytes, 7000);
	put_attribute(&m, NFQA_PAYLOAD, bytes, sizeof(bytes));
	end_message(&m, start);
	fake_kernel_send(&k, &m);
	k.last_id = 1;
	fake_kernel_queue(&k, "r");
	run_to_the_end(&k);
	CHECK(!strcmp(fake_kernel_verdicts(&k), "A2")); /* this also accepts the truncated one */
	CHECK(stats_of(&k).malformed == 1);
	fake_kernel_free(&k);
}

/* Packet ids wrap around after some days of traffic. */
static void ids_wrap_around(void)
{
	struct fake_kernel k = fake_kernel_new();

	k.last_id = UINT32_MAX - 2;
	fake_kernel_queue(&k, "rrwr");
	run_to_the_end(&k);
	CHECK(!strcmp(fake_kernel_verdicts(&k), "A4294967295 R0 A1"));
	fake_kernel_free(&k);
}

/* If the kernel refuses a send as too long, all packets are accepted unrepaired. */
static void refused_send(void)
{
	struct fake_kernel k = fake_kernel_new();
	int smallest = 0;

	k.payload = PACKET_MAX - 100;
	fake_kernel_queue(&k, "rwwr");
	CHECK(!setsockopt(k.drain_fd, SOL_SOCKET, SO_SNDBUF, &smallest, sizeof(smallest)));
	run_to_the_end(&k);
	CHECK(!strcmp(fake_kernel_verdicts(&k), "A4"));
	CHECK(stats_of(&k).sends == 2 && stats_of(&k).send_errors == 1);
	fake_kernel_free(&k);
}

/* After a refused send in the middle of a batch, later packets are still repaired. */
static void refused_send_in_the_middle(void)
{
	struct fake_kernel k = fake_kernel_new();
	int smallest = 0;

	k.payload = PACKET_MAX - 100;
	fake_kernel_queue(&k, "rwwwwwwwwwwwwwwwwww");
	k.payload = 4;
	fake_kernel_queue(&k, "wr");
	CHECK(!setsockopt(k.drain_fd, SOL_SOCKET, SO_SNDBUF, &smallest, sizeof(smallest)));
	run_to_the_end(&k);
	CHECK(!strcmp(fake_kernel_verdicts(&k), "A17 A21"));
	CHECK(stats_of(&k).sends == 4 && stats_of(&k).send_errors == 2);
	fake_kernel_free(&k);
}

static void nobody_to_send_to(void)
{
	struct fake_kernel k = fake_kernel_new();

	fake_kernel_queue(&k, "rw");
	fake_kernel_end(&k);
	CHECK(!shutdown(k.drain_fd, SHUT_WR));
	CHECK(drain_run(k.drain) == -ENODEV);
	CHECK(stats_of(&k).sends == 2 && stats_of(&k).send_errors == 2);
	fake_kernel_free(&k);
}

/* Which refusals of a verdict end drain_run(); the batch is answered first. */
static void refusals(void)
{
	static const struct {
		int error;
		bool ends;
	} rows[] = { { 0, false },       { -ENOENT, false }, { -EINVAL, false },
		     { -ENOMEM, false }, { -EPERM, true },   { -ENODEV, true } };

	for (size_t i = 0; i < COUNT_OF(rows); i++) {
		struct fake_kernel k = fake_kernel_new();
		static struct message m;

		m.len = 0;
		put_status(&m, BATCH_TYPE, rows[i].error);
		put_packet_letter(&m, 'w', 1, 4);
		fake_kernel_send(&k, &m);
		if (!rows[i].ends)
			fake_kernel_end(&k);
		CHECK(drain_run(k.drain) == (rows[i].ends ? rows[i].error : -ENODEV));
		CHECK(!strcmp(fake_kernel_verdicts(&k), "R1"));
		fake_kernel_free(&k);
	}
}

static void unusable_socket(void)
{
	struct drain *d = drain_new(-1, FAKE_QUEUE, &vxlan_policy);

	CHECK(d);
	CHECK(drain_run(d) == -EBADF);
	CHECK(drain_configure(d, 1 << 20, DRAIN_COPY_WHOLE) == -EBADF);
	drain_free(d);
}

/* A socket pair cannot be connected to the kernel. The Makefile wraps connect(). */
int __wrap_connect(int fd, const struct sockaddr *to, socklen_t len);
int __real_connect(int fd, const struct sockaddr *to, socklen_t len);

int __wrap_connect(int fd, const struct sockaddr *to, socklen_t len)
{
	return to->sa_family == AF_NETLINK && fd >= 0 ? 0 : __real_connect(fd, to, len);
}

/* The answer to the configuration may arrive after packets, which are answered as usual. */
static void configuration(void)
{
	static const int answers[] = { 0, -EPERM, -ENODEV, -EOPNOTSUPP };

	for (size_t i = 0; i < COUNT_OF(answers); i++) {
		struct fake_kernel k = fake_kernel_new();
		static struct message m;
		uint8_t request[256];
		struct nlmsghdr header;

		m.len = 0;
		fake_kernel_queue(&k, "rw");
		put_status(&m, CONFIG_TYPE, answers[i]);
		fake_kernel_send(&k, &m);
		CHECK(drain_configure(k.drain, 1 << 20, 0x0f01) == answers[i]);
		CHECK(recv(k.fd, request, sizeof(request), 0) == 48);
		CHECK(request[26] == 0x0f && request[27] == 0x01);
		memcpy(&header, request, sizeof(header));
		CHECK(header.nlmsg_type == CONFIG_TYPE);
		CHECK(!strcmp(fake_kernel_verdicts(&k), "A1 R2"));
		fake_kernel_free(&k);
	}
}

/* A later answer to another configuration request is ignored. */
static void stray_configuration_answer(void)
{
	struct fake_kernel k = fake_kernel_new();
	static struct message m;

	put_status(&m, CONFIG_TYPE, -EPERM);
	fake_kernel_send(&k, &m);
	fake_kernel_queue(&k, "r");
	run_to_the_end(&k);
	CHECK(!strcmp(fake_kernel_verdicts(&k), "A1"));
	fake_kernel_free(&k);
}

static void no_answer_to_the_configuration(void)
{
	struct fake_kernel k = fake_kernel_new();
	struct timespec before, after;

	clock_gettime(CLOCK_MONOTONIC, &before);
	CHECK(drain_configure(k.drain, 1 << 20, DRAIN_COPY_WHOLE) == -ETIMEDOUT);
	clock_gettime(CLOCK_MONOTONIC, &after);
	CHECK(after.tv_sec - before.tv_sec < 5);
	fake_kernel_free(&k);
}

/* A test can stop the clock. The Makefile wraps clock_gettime(). */
static uint64_t frozen_us;

int __wrap_clock_gettime(clockid_t clock, struct timespec *t);
int __real_clock_gettime(clockid_t clock, struct timespec *t);

int __wrap_clock_gettime(clockid_t clock, struct timespec *t)
{
	if (!frozen_us)
		return __real_clock_gettime(clock, t);
	t->tv_sec = (time_t)(frozen_us / 1000000);
	t->tv_nsec = (long)(frozen_us % 1000000) * 1000;
	return 0;
}

/* A probe measures the time until the packets before it have been answered. */
static void waits(void)
{
	static const struct {
		uint64_t sent, arrived;
		size_t bucket;
	} rows[] = {
		{ 5, 5, 0 },
		{ 5, 15, 0 },
		{ 5, 16, 1 },
		{ 999999, 1000000, 0 },
		{ 1, 501, 5 },
		{ 1, 1000001, 15 },
		{ 1, 1000002, 16 },
		{ 1, 1u << 31, 16 },
		{ UINT32_MAX, UINT32_MAX + 50ull, 2 }, /* the time in the probe wraps around */
	};

	for (size_t i = 0; i < COUNT_OF(rows); i++) {
		struct fake_kernel k = fake_kernel_new();
		struct drain_stats stats;
		struct nlmsghdr probe;

		frozen_us = rows[i].sent;
		drain_probe(k.drain);
		probe = fake_kernel_take_noop(&k);
		fake_kernel_queue(&k, "rwr");
		fake_kernel_answer(&k, &probe);
		fake_kernel_queue(&k, "rw");
		frozen_us = rows[i].arrived;
		run_to_the_end(&k);
		frozen_us = 0;
		CHECK(!strcmp(fake_kernel_verdicts(&k), "A1 R2 A3 A4 R5"));
		stats = stats_of(&k);
		CHECK(stats.sends == 2); /* the packets before the probe are answered first */
		CHECK(stats.wait_us == rows[i].arrived - rows[i].sent);
		for (size_t bucket = 0; bucket < COUNT_OF(stats.waits); bucket++)
			CHECK(stats.waits[bucket] == (bucket == rows[i].bucket));
		CHECK(!stats.overruns);
		fake_kernel_free(&k);
	}
}

/* Receive calls are counted by number of packets; those without packets are not counted. */
static void batch_sizes(void)
{
	static const struct {
		size_t packets, bucket;
	} rows[] = { { 1, 0 },  { 2, 1 },  { 3, 2 },  { 4, 2 },  { 5, 3 },
		     { 32, 5 }, { 33, 6 }, { 63, 6 }, { 64, 6 }, { 65, 7 } };

	for (size_t i = 0; i < COUNT_OF(rows); i++) {
		struct fake_kernel k = fake_kernel_new();
		static char letters[2 * 65 + 1];
		struct drain_stats stats;

		for (size_t n = 0; n < rows[i].packets; n++)
			memcpy(letters + 2 * n, "r+", 2);
		letters[2 * rows[i].packets - 1] = 0; /* all in one datagram */
		fake_kernel_queue(&k, letters);
		run_to_the_end(&k);
		run_to_the_end(&k); /* this time without packets */
		stats = stats_of(&k);
		CHECK(stats.batches == 2);
		for (size_t bucket = 0; bucket < COUNT_OF(stats.batch_sizes); bucket++)
			CHECK(stats.batch_sizes[bucket] == (bucket == rows[i].bucket));
		fake_kernel_free(&k);
	}
}

int main(void)
{
	alarm(60); /* a test that hangs must fail */
	watch_allocations();
	verdicts_and_counters();
	reasons_and_bytes();
	packets_by_port();
	more_ports_than_fit();
	new_policy();
	more_verdicts_than_fit();
	about_as_many_verdicts_as_fit();
	more_datagrams_than_fit();
	more_bytes_than_fit();
	too_long_a_datagram();
	ids_wrap_around();
	refused_send();
	refused_send_in_the_middle();
	nobody_to_send_to();
	refusals();
	unusable_socket();
	configuration();
	stray_configuration_answer();
	no_answer_to_the_configuration();
	waits();
	batch_sizes();
	printf("drain: all right%s\n",
	       __sanitizer_install_malloc_and_free_hooks ? ", no allocations" : "");
	return 0;
}
