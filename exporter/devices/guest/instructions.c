/* A plugin for QEMU's user-mode emulator: counts the A64 instructions that a guest executes, by class.
 *
 * The guest asks for a snapshot of the counters by the system call getpriority(MARK, tag). No kernel knows that kind
 * of priority: the call does nothing but fail, on a real board too. Each snapshot is one line of JSON: what the
 * calling thread executed so far, by class, and how much all other threads did.
 *
 * The classes exclude each other, so that they add up to `total`. Encodings: Arm Architecture Reference Manual for
 * A-profile, chapter C4. The declarations are those of version 1 of QEMU's plugin interface, which QEMU 7.2 has.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MARK 0x45584350u
#define GETPRIORITY 141
#define THREADS 256
#define VISIBLE __attribute__((visibility("default")))

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_info {
    const char *target_name;
    struct { int min, cur; } version;
    bool system_emulation;
    union { struct { int smp_vcpus, max_vcpus; } system; };
};
enum { NO_REGISTERS = 0 };

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *), int, void *);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id, void (*)(plugin_id, unsigned, int64_t, uint64_t, uint64_t,
    uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));
void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);

enum class { DOT, MATMUL, FMA, FMA_HALF, WIDENING, SIMD, MEMORY, BRANCH, INTEGER, OTHER, CLASSES };
static const char *const names[CLASSES] = {
    "dot", "matmul", "fma", "fma_half", "widening", "simd", "memory", "branch", "integer", "other",
};

/* The first entry that an instruction fits is its class. */
static const struct { uint32_t mask, bits; enum class is; } encodings[] = {
    {0x9fe0fc00, 0x0e809400, DOT},      /* SDOT, UDOT (vector) */
    {0xbfe0fc00, 0x0e809c00, DOT},      /* USDOT (vector) */
    {0x9fc0f400, 0x0f80e000, DOT},      /* SDOT, UDOT (by element) */
    {0xbf40f400, 0x0f00f000, DOT},      /* SUDOT, USDOT (by element) */
    {0xdfe0f400, 0x4e80a400, MATMUL},   /* SMMLA, UMMLA, USMMLA */
    {0xbf20fc00, 0x0e20cc00, FMA},      /* FMLA, FMLS (vector), single and double precision */
    {0xbf80b400, 0x0f801000, FMA},      /* FMLA, FMLS (by element), single and double precision */
    {0xbf60fc00, 0x0e400c00, FMA_HALF}, /* FMLA, FMLS (vector), half precision */
    {0xbfc0b400, 0x0f001000, FMA_HALF}, /* FMLA, FMLS (by element), half precision */
    {0x9f20bc00, 0x0e208000, WIDENING}, /* SMLAL, UMLAL, SMULL, UMULL (vector) */
    {0x9f20fc00, 0x0e20a000, WIDENING}, /* SMLSL, UMLSL (vector) */
    {0x9f007400, 0x0f002000, WIDENING}, /* SMLAL, UMLAL, SMULL, UMULL (by element) */
    {0x9f00f400, 0x0f006000, WIDENING}, /* SMLSL, UMLSL (by element) */
    {0x0e000000, 0x0e000000, SIMD},     /* the rest of SIMD and scalar floating point */
    {0x0a000000, 0x08000000, MEMORY},   /* loads and stores */
    {0x1c000000, 0x14000000, BRANCH},   /* branches, exceptions, system */
    {0x1c000000, 0x10000000, INTEGER},  /* data processing, immediate */
    {0x0e000000, 0x0a000000, INTEGER},  /* data processing, register */
    {0x00000000, 0x00000000, OTHER},    /* SVE and what is not allocated */
};

/* A row for each thread of the guest: threads run at once, and none writes another's. */
static struct { uint64_t counts[CLASSES]; } executed[THREADS];
static FILE *out;

static enum class class_of(uint32_t word)
{
    size_t i = 0;
    while ((word & encodings[i].mask) != encodings[i].bits)
        i++;
    return encodings[i].is;
}

static void ran(unsigned thread, void *block)
{
    const uint16_t *found = block;
    if (thread < THREADS)
        for (int i = 0; i < CLASSES; i++)
            executed[thread].counts[i] += found[i];
}

static void translated(plugin_id id, struct qemu_plugin_tb *block)
{
    size_t length = qemu_plugin_tb_n_insns(block);
    uint16_t *found = calloc(CLASSES, sizeof *found); /* lives as long as the block may run: to the end */
    if (found == NULL)
        abort();
    for (size_t i = 0; i < length; i++) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, i)), sizeof word);
        found[class_of(word)]++;
    }
    qemu_plugin_register_vcpu_tb_exec_cb(block, ran, NO_REGISTERS, found);
}

static void called(plugin_id id, unsigned thread, int64_t number, uint64_t which, uint64_t tag, uint64_t a3,
                   uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    uint64_t total = 0, others = 0;
    if (number != GETPRIORITY || (uint32_t)which != MARK || thread >= THREADS)
        return;
    for (unsigned other = 0; other < THREADS; other++)
        for (int i = 0; other != thread && i < CLASSES; i++)
            others += executed[other].counts[i];
    fprintf(out, "{\"tag\":%" PRIu64 ",\"others\":%" PRIu64 ",\"counts\":{", tag, others);
    for (int i = 0; i < CLASSES; i++) {
        total += executed[thread].counts[i];
        fprintf(out, "\"%s\":%" PRIu64 ",", names[i], executed[thread].counts[i]);
    }
    fprintf(out, "\"total\":%" PRIu64 "}}\n", total);
    fflush(out);
}

static void ended(plugin_id id, void *data)
{
    fclose(out);
}

VISIBLE int qemu_plugin_version = 1;

VISIBLE int qemu_plugin_install(plugin_id id, const struct qemu_info *info, int argc, char **argv)
{
    const char *path = NULL;
    for (int i = 0; i < argc; i++)
        if (strncmp(argv[i], "out=", 4) == 0)
            path = argv[i] + 4;
    if (path == NULL || strcmp(info->target_name, "aarch64") != 0 || info->system_emulation)
        return 1;
    out = fopen(path, "w");
    if (out == NULL)
        return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}
