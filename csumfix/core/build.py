"""Builds csumfix.core._core, the cffi extension around the C core in csrc/ (API mode)."""

from pathlib import Path

from cffi import FFI

SOURCES = (
    "checksum",
    "packet",
    "inner",
    "outer",
    "repair",
    "inspect",
    "nfqmsg",
    "drain",
)

# Only what Python uses. In API mode the compiler checks each line against the headers and fills
# in every `...`.
DECLARATIONS = """
uint64_t checksum_add(const void *data, size_t len);
uint64_t checksum_add_portable(const void *data, size_t len);
uint16_t fold(uint64_t raw);
const char *backend(void);

#define OUTER_OK ...
#define OUTER_NOT_IP ...
#define OUTER_MALFORMED_IP ...
#define OUTER_FRAGMENT ...
#define OUTER_REROUTED ...
#define OUTER_NOT_UDP ...
#define OUTER_MALFORMED_UDP ...
#define OUTER_OTHER_PORT ...
#define OUTER_NOT_VXLAN ...
#define OUTER_STATUSES ...
struct outer_ports { ...; };
void outer_ports_add(struct outer_ports *ports, uint16_t port);

#define INNER_UNPROVEN ...
#define INNER_RIGHT ...
#define INNER_CORRUPT ...
#define INNER_PARTIAL ...
#define INNER_MALFORMED ...
#define INNER_STATES ...

#define REPAIR_REASONS ...
#define REPAIR_OUTCOMES ...
#define REPAIR_VERIFIED ...
#define REPAIR_REPAIRED ...
#define REPAIR_FILLED ...
#define REPAIR_LEFT_WRONG ...
#define REPAIR_NOT_JUDGED ...
struct repair_policy { struct outer_ports ports; bool fill_zero; ...; };
struct repair_result { int reason; ...; };
struct repair_result repair(uint8_t *packet, size_t caplen, size_t wirelen, bool partial,
                            bool replaceable, const struct repair_policy *policy);
const char *repair_reason_name(int reason);
int repair_outcome(int reason);
const char *repair_outcome_name(int outcome);

struct view { const uint8_t *data; size_t len; ...; };
#define INSPECT_NONE ...
#define INSPECT_RIGHT ...
#define INSPECT_WRONG ...
#define INSPECT_ZERO ...
#define INSPECT_PARTIAL ...
#define INSPECT_LCO ...
#define INSPECT_CHECKS ...
struct inspection {
    int status; int check; uint16_t found; uint16_t expected; uint16_t difference;
    uint16_t source; uint16_t dest; uint32_t vni; int inner;
    uint16_t inner_found; uint16_t inner_expected; ...;
};
struct inspection inspect(struct view v, const struct outer_ports *ports);
struct inspection inspect_geneve(struct view v, const struct outer_ports *ports);

struct drain;
extern const uint32_t drain_batch_bounds[...];
extern const uint32_t drain_wait_bounds[...];
struct drain_port_stats { uint64_t port, packets, repaired, left_wrong; };
struct drain_stats {
    uint64_t packets, bytes, batches;
    uint64_t batch_sizes[...];
    uint64_t waits[...];
    uint64_t wait_us;
    uint64_t reasons[...];
    uint64_t sends, send_errors, verdict_errors, overruns, interrupts, malformed, unexpected;
    struct drain_port_stats ports[...];
};
struct drain *drain_new(int fd, uint16_t queue, const struct repair_policy *policy);
void drain_free(struct drain *d);
#define DRAIN_COPY_WHOLE ...
int drain_configure(struct drain *d, int socket_bytes, uint32_t copy_range);
int drain_run(struct drain *d);
void drain_stop(struct drain *d);
void drain_probe(struct drain *d);
void drain_set_policy(struct drain *d, const struct repair_policy *policy);
void drain_get_stats(struct drain *d, struct drain_stats *stats);
"""

HEADERS = """
#include "checksum.h"
#include "drain.h"
#include "inspect.h"
#include "repair.h"

static uint16_t fold(uint64_t raw) { return checksum_fold(raw); }
static const char *backend(void) { return checksum_in_use.name; }
"""

# setuptools wants paths relative to setup.py, whatever directory this file is run from.
CSRC = Path("csrc")

ffi = FFI()
ffi.cdef(DECLARATIONS)
ffi.set_source(
    "csumfix.core._core",
    HEADERS,
    sources=[str(CSRC / f"{name}.c") for name in SOURCES],
    depends=[str(path) for path in CSRC.glob("*.h")],
    include_dirs=[str(CSRC)],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra"],
)
