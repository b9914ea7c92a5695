/* SPDX-License-Identifier: MIT */
/*
 * The drain in its own thread, as in the service: stopped while it sleeps and under load,
 * interrupted by signals, and read and reconfigured while it works. Also built with
 * ThreadSanitizer.
 */
#include "fake_kernel.h"

#include <pthread.h>
#include <signal.h>
#include <time.h>

enum {
	AT_ONCE_MS =
	    2000 /* generous: the machine may be busy, and a drain that hangs never returns */
};

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void sleep_ms(long ms)
{
	const struct timespec t = { .tv_nsec = ms * 1000000 };

	nanosleep(&t, NULL);
}

static void *run(void *drain)
{
	return (void *)(intptr_t)drain_run(drain);
}

static pthread_t start(struct drain *d)
{
	pthread_t thread;

	CHECK(!pthread_create(&thread, NULL, run, d));
	return thread;
}

static int join(pthread_t thread)
{
	void *result;

	CHECK(!pthread_join(thread, &result));
	return (int)(intptr_t)result;
}

/* Waits until a counter has reached a value. */
#define AWAIT(counter, value)                         \
	do {                                          \
		uint64_t deadline = now_ms() + 10000; \
		while ((counter) < (value)) {         \
			CHECK(now_ms() < deadline);   \
			sleep_ms(1);                  \
		}                                     \
	} while (0)

/* Acknowledges no-op requests, as the kernel does. */
static void acknowledge_noop(const struct fake_kernel *k)
{
	struct nlmsghdr noop = fake_kernel_take_noop(k);

	fake_kernel_answer(k, &noop);
}

static void stopped_while_asleep(void)
{
	struct fake_kernel k = fake_kernel_new();
	pthread_t thread = start(k.drain);
	uint64_t before;

	sleep_ms(20);
	before = now_ms();
	drain_stop(k.drain);
	acknowledge_noop(&k);
	CHECK(join(thread) == 0);
	CHECK(now_ms() - before < AT_ONCE_MS);
	CHECK(!stats_of(&k).verdict_errors && !stats_of(&k).malformed && !stats_of(&k).sends);
	fake_kernel_free(&k);
}

/* The race described in drain.h: drain_stop() at any moment between start and sleep. */
static void stopped_at_any_moment(void)
{
	for (int i = 0; i < 200; i++) {
		struct fake_kernel k = fake_kernel_new();
		pthread_t thread = start(k.drain);

		for (volatile int spin = 0; spin < 100 * i; spin++)
			;
		drain_stop(k.drain);
		acknowledge_noop(&k);
		CHECK(join(thread) == 0);
		CHECK(drain_run(k.drain) == 0); /* it stays stopped */
		fake_kernel_free(&k);
	}
}

/* The same with the real kernel, which acknowledges for every netlink protocol and any user. */
static void stopped_by_the_real_kernel(void)
{
	int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
	struct drain *d = drain_new(fd, FAKE_QUEUE, &vxlan_policy);
	pthread_t thread;

	CHECK(fd >= 0 && d);
	/* rtnetlink has no queues, so it refuses the configuration. */
	CHECK(drain_configure(d, 4096, DRAIN_COPY_WHOLE) == -EOPNOTSUPP);
	drain_free(d);
	d = drain_new(fd, FAKE_QUEUE, &vxlan_policy);
	CHECK(d);
	thread = start(d);
	sleep_ms(20);
	drain_stop(d);
	CHECK(join(thread) == 0);
	drain_free(d);
	close(fd);
}

/* Unread acknowledgements overflow the socket's buffer. The drain counts the lost ones and goes on.
 * Lost acknowledgements of its probes are not counted. */
static void overrun(void)
{
	enum { LOST = 100 };
	/* Acknowledged like a probe. */
	static const struct nlmsghdr other = {
		.nlmsg_len = sizeof(other),
		.nlmsg_type = NLMSG_DONE,
		.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK,
	};
	int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE), smallest = 0;
	struct drain *d = drain_new(fd, FAKE_QUEUE, &vxlan_policy);
	struct drain_stats stats;
	pthread_t thread;

	CHECK(fd >= 0 && d);
	CHECK(!setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &smallest, sizeof(smallest)));
	for (int i = 0; i < 100; i++)
		drain_probe(d);
	drain_get_stats(d, &stats);
	CHECK(!stats.overruns);
	for (int i = 0; i < LOST; i++)
		CHECK(send(fd, &other, sizeof(other), 0) == sizeof(other));
	drain_get_stats(d, &stats);
	CHECK(stats.overruns < LOST); /* probes in the buffer count as lost until they are read */
	thread = start(d);
	do {
		drain_get_stats(d, &stats);
		CHECK(stats.overruns <= LOST);
	} while (stats.overruns < LOST);
	drain_probe(d);
	drain_get_stats(d, &stats);
	CHECK(stats.overruns == LOST);
	drain_stop(d);
	CHECK(join(thread) == 0);
	drain_free(d);
	close(fd);
}

static void on_signal(int number)
{
	(void)number;
}

static void interrupted_by_signals(void)
{
	const struct sigaction action = { .sa_handler = on_signal }; /* without SA_RESTART */
	struct fake_kernel k = fake_kernel_new();
	pthread_t thread;

	CHECK(!sigaction(SIGUSR1, &action, NULL));
	thread = start(k.drain);
	for (uint64_t n = 0; n < 3; n = stats_of(&k).interrupts) {
		CHECK(!pthread_kill(thread, SIGUSR1));
		sleep_ms(1);
	}
	fake_kernel_queue(&k, "r+w");
	AWAIT(stats_of(&k).sends, 1);
	CHECK(!strcmp(fake_kernel_verdicts(&k), "A1 R2"));
	drain_stop(k.drain);
	acknowledge_noop(&k);
	CHECK(join(thread) == 0);
	fake_kernel_free(&k);
}

/* A kernel that sends packets as fast as it can and checks the order of the verdicts. */
struct load {
	struct fake_kernel *k;
	bool end;
	uint32_t answered;
};

/* Reads the waiting verdicts: every packet is answered once, in order of arrival. */
static void take_verdicts(struct load *load)
{
	static _Alignas(8) uint8_t bytes[MESSAGE_MAX];
	ssize_t n;

	while ((n = recv(load->k->fd, bytes, sizeof(bytes), MSG_DONTWAIT)) > 0) {
		for (size_t at = 0; at < (size_t)n;) {
			struct nlmsghdr header;
			uint32_t id;

			memcpy(&header, bytes + at, sizeof(header));
			if (header.nlmsg_type == NLMSG_NOOP) {
				fake_kernel_answer(load->k, &header);
				break;
			}
			memcpy(&id, bytes + at + 28, sizeof(id));
			id = ntohl(id);
			CHECK(id > load->answered);
			CHECK(header.nlmsg_type == BATCH_TYPE || id == load->answered + 1);
			load->answered = id;
			at += (header.nlmsg_len + 3) & ~(size_t)3;
		}
	}
}

static void *feed(void *data)
{
	static struct message m;
	struct load *load = data;

	while (!__atomic_load_n(&load->end, __ATOMIC_ACQUIRE)) {
		m.len = 0;
		put_packet_letter(&m, "wrw"[load->k->last_id % 3], load -> k -> last_id + 1, 4);
		if (send(load->k->fd, m.bytes, m.len, MSG_DONTWAIT) > 0)
			load->k->last_id++;
		take_verdicts(load);
	}
	return NULL;
}

static uint64_t probes_in(const struct drain_stats *stats)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < COUNT_OF(stats->waits); i++)
		sum += stats->waits[i];
	return sum;
}

static void *probe(void *data)
{
	struct load *load = data;

	while (!__atomic_load_n(&load->end, __ATOMIC_ACQUIRE)) {
		drain_probe(load->k->drain);
		sleep_ms(1);
	}
	return NULL;
}

/* Counters only rise, probes pass, a new policy takes effect, and drain_stop() works while packets
 * keep coming. By then every received packet has been answered. */
static void under_load(void)
{
	static const struct repair_policy other_port = { .ports = ONLY_PORT(4789) };
	struct fake_kernel k = fake_kernel_new();
	struct load load = { .k = &k };
	pthread_t drain = start(k.drain), feeder, prober;
	struct drain_stats stats, last = { .packets = 0 };
	uint64_t before;

	CHECK(!pthread_create(&feeder, NULL, feed, &load));
	CHECK(!pthread_create(&prober, NULL, probe, &load));
	while (last.reasons[REPAIR_RECOMPUTED] < 2000 || probes_in(&last) < 20) {
		stats = stats_of(&k);
		CHECK(stats.packets >= last.packets && stats.bytes >= last.bytes);
		CHECK(stats.reasons[REPAIR_RECOMPUTED] >= last.reasons[REPAIR_RECOMPUTED]);
		CHECK(stats.ports[0].packets >= last.ports[0].packets);
		CHECK(stats.ports[0].repaired >= last.ports[0].repaired);
		CHECK(probes_in(&stats) >= probes_in(&last) && !stats.overruns);
		last = stats;
	}
	drain_set_policy(k.drain, &other_port);
	AWAIT(stats_of(&k).reasons[REPAIR_OTHER_PORT], 1000);
	drain_set_policy(k.drain, &vxlan_policy);
	last = stats_of(&k);
	AWAIT(stats_of(&k).reasons[REPAIR_RECOMPUTED], last.reasons[REPAIR_RECOMPUTED] + 1000);
	before = now_ms();
	drain_stop(k.drain);
	CHECK(join(drain) == 0);
	CHECK(now_ms() - before < AT_ONCE_MS);
	__atomic_store_n(&load.end, true, __ATOMIC_RELEASE);
	CHECK(!pthread_join(feeder, NULL));
	CHECK(!pthread_join(prober, NULL));
	take_verdicts(&load);
	stats = stats_of(&k);
	CHECK(load.answered == stats.packets);
	CHECK(stats.ports[0].port == VXLAN_PORT && !stats.ports[1].port);
	CHECK(stats.ports[0].repaired == stats.reasons[REPAIR_RECOMPUTED]);
	CHECK(stats.ports[0].packets + stats.reasons[REPAIR_OTHER_PORT] == stats.packets);
	fake_kernel_free(&k);
}

int main(void)
{
	alarm(60); /* a test that hangs must fail */
	stopped_while_asleep();
	stopped_at_any_moment();
	/* qemu-user passes on 4 bytes of SO_MEMINFO, and acknowledgements in the host's byte order.
	 */
	if (!getenv("EMULATED")) {
		stopped_by_the_real_kernel();
		overrun();
	}
	interrupted_by_signals();
	under_load();
	printf("drain in threads: all right\n");
	return 0;
}
