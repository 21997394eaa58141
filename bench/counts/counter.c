/* A plugin of QEMU's user-mode emulation (plugin interface, version 1) that counts what a program executes: all instructions, those that
 * work on vectors, and among them multiply-adds of vectors. It knows RISC-V 64 and AArch64 by their encodings (RISC-V "V" 1.0, chapter
 * "Vector Instruction Formats"; Arm ARM, section C4.1); elsewhere everything but the first count is 0.
 *
 *   clang-22 -O2 -shared -fPIC counter.c -o counter.so;  qemu-riscv64 -plugin ./counter.so,out=FILE,above=ADDRESS PROGRAM
 *
 * At the end a line `ALL VECTOR MULTIPLY_ADDS` is added to the file. Only code above the address counts: 0 for a whole program, 0x10000000
 * for what a program that is linked below has loaded. */

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The part of the interface that is used here; Debian ships the emulator without its header. */
typedef uint64_t qemu_plugin_id_t;
typedef struct { const char *target_name; } info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int add, void *, uint64_t);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void *), void *);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

enum { ALL, VECTOR, MULTIPLY_ADD, KINDS };
static uint64_t counts[KINDS], above;
static char path[4096];
static int (*kind)(uint32_t);

static int riscv(uint32_t i) {
    uint32_t opcode = i & 0x7f, width = i >> 12 & 7, op = i >> 26;
    if (opcode == 0x57) {
        /* vsetvl and its kin have width 7. Of floats (widths 1 and 5) the operations 0x28 to 0x2f are the fused ones, 0x3c to 0x3f their
         * widening forms. */
        if (width == 7) return ALL;
        int fused = (op >= 0x28 && op <= 0x2f) || op >= 0x3c;
        return (width == 1 || width == 5) && fused ? MULTIPLY_ADD : VECTOR;
    }
    int moves = opcode == 0x07 || opcode == 0x27;
    return moves && (width == 0 || width >= 5) ? VECTOR : ALL;
}

static int aarch64(uint32_t i) {
    uint32_t group = i >> 25 & 15;
    if (group == 2) {
        /* SVE: fused multiply-adds by vectors and by an element. */
        int fused = (i & 0xff200000) == 0x65200000 || (i & 0xff20f000) == 0x64200000;
        return fused ? MULTIPLY_ADD : VECTOR;
    }
    /* FMLA and FMLS of vectors, then by an element. */
    if ((i & 0xbf20fc00) == 0x0e20cc00 || (i & 0xbf80b400) == 0x0f801000) return MULTIPLY_ADD;
    if (group == 7 || group == 15) return (i >> 28 & 5) == 1 ? ALL : VECTOR;
    return (group & 5) == 4 && (i >> 26 & 1) ? VECTOR : ALL;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
    if (qemu_plugin_tb_vaddr(tb) < above) return;
    size_t n = qemu_plugin_tb_n_insns(tb);
    uint64_t here[KINDS] = {n};
    for (size_t k = 0; kind && k < n; k++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, k);
        uint32_t code = 0;
        if (qemu_plugin_insn_size(insn) != sizeof code) continue;
        memcpy(&code, qemu_plugin_insn_data(insn), sizeof code);
        int which = kind(code);
        here[VECTOR] += which != ALL;
        here[MULTIPLY_ADD] += which == MULTIPLY_ADD;
    }
    for (int k = 0; k < KINDS; k++)
        if (here[k]) qemu_plugin_register_vcpu_tb_exec_inline(tb, 0, &counts[k], here[k]);
}

static void ended(qemu_plugin_id_t id, void *unused) {
    FILE *out = fopen(path, "a");
    if (!out) {
        perror(path);
        return;
    }
    fprintf(out, "%llu %llu %llu\n", (unsigned long long)counts[ALL], (unsigned long long)counts[VECTOR],
            (unsigned long long)counts[MULTIPLY_ADD]);
    fclose(out);
}

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const info_t *info, int argc, char **argv) {
    for (int i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "out=", 4) && strlen(argv[i]) - 4 < sizeof path) {
            strcpy(path, argv[i] + 4);
        } else if (!strncmp(argv[i], "above=", 6)) {
            above = strtoull(argv[i] + 6, NULL, 0);
        } else {
            fprintf(stderr, "counter: '%s' is neither out=FILE nor above=ADDRESS\n", argv[i]);
            return 1;
        }
    }
    if (strstr(info->target_name, "riscv64")) kind = riscv;
    if (strstr(info->target_name, "aarch64")) kind = aarch64;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}
