/* The on-target half of a remote CPU device: runs kernels of the CPU back end for a host that speaks the protocol of
 * ../src/agent/protocol.rs on standard input and output. Freestanding: it makes its own system calls (Linux on x86-64, AArch64,
 * RISC-V 64, LoongArch 64) and links with nothing.
 *
 * It checks every frame and every address that it is given. What a kernel does with its buffers is the compiler's business; one that
 * breaks memory or does not end takes this process with it, and the host sees that. */

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;
typedef long i64;

enum { VERSION = 1, MAGIC = 0x41545454, LARGEST = 1 << 20, ANSWER = 0x80000000u, REFUSAL = 0xffffffffu };
enum { HELLO = 1, ALLOC, FREE, WRITE, READ, COPY, CODE, LAUNCH, BYE };
enum { E_FRAME = 1, E_KIND, E_MEMORY, E_ADDRESS, E_ARGUMENT };

/* ---- system calls ---- */

#if defined(__x86_64__)
enum { N_READ = 0, N_WRITE = 1, N_MMAP = 9, N_MPROTECT = 10, N_MUNMAP = 11, N_SETITIMER = 38, N_CLONE = 56, N_WAIT4 = 61,
       N_PRCTL = 157, N_TIME = 228, N_EXIT = 231 };
static i64 call6(i64 n, i64 a, i64 b, i64 c, i64 d, i64 e, i64 f) {
    i64 r;
    register i64 r10 __asm__("r10") = d;
    register i64 r8 __asm__("r8") = e;
    register i64 r9 __asm__("r9") = f;
    __asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
    return r;
}
__asm__(".globl _start\n_start:\n xor %ebp, %ebp\n mov %rsp, %rdi\n and $-16, %rsp\n call begin\n");
#else
enum { N_READ = 63, N_WRITE = 64, N_EXIT = 94, N_SETITIMER = 103, N_TIME = 113, N_PRCTL = 167, N_MUNMAP = 215, N_CLONE = 220,
       N_MMAP = 222, N_MPROTECT = 226, N_FLUSH = 259, N_WAIT4 = 260 };
#if defined(__aarch64__)
#define REGISTER(k) "x" #k
#define NUMBER "x8"
#define TRAP "svc 0"
__asm__(".globl _start\n_start:\n mov x29, #0\n mov x30, #0\n mov x0, sp\n and x1, x0, #-16\n mov sp, x1\n bl begin\n");
#elif defined(__riscv)
#define REGISTER(k) "a" #k
#define NUMBER "a7"
#define TRAP "ecall"
__asm__(".globl _start\n_start:\n mv a0, sp\n andi sp, sp, -16\n call begin\n");
#elif defined(__loongarch__)
#define REGISTER(k) "a" #k
#define NUMBER "a7"
#define TRAP "syscall 0"
__asm__(".globl _start\n_start:\n move $a0, $sp\n bstrins.d $sp, $zero, 3, 0\n bl begin\n");
#else
#error "this architecture is not known"
#endif
static i64 call6(i64 n, i64 a, i64 b, i64 c, i64 d, i64 e, i64 f) {
    register i64 number __asm__(NUMBER) = n;
    register i64 r0 __asm__(REGISTER(0)) = a;
    register i64 r1 __asm__(REGISTER(1)) = b;
    register i64 r2 __asm__(REGISTER(2)) = c;
    register i64 r3 __asm__(REGISTER(3)) = d;
    register i64 r4 __asm__(REGISTER(4)) = e;
    register i64 r5 __asm__(REGISTER(5)) = f;
    __asm__ volatile(TRAP
                     : "+r"(r0)
                     : "r"(number), "r"(r1), "r"(r2), "r"(r3), "r"(r4), "r"(r5)
                     : "memory"
#if defined(__loongarch__)
                     , "t0", "t1", "t2", "t3", "t4", "t5", "t6", "t7", "t8"
#endif
    );
    return r0;
}
#endif

static i64 call3(i64 n, i64 a, i64 b, i64 c) { return call6(n, a, b, c, 0, 0, 0); }

static void leave(int status) {
    for (;;) call3(N_EXIT, status, 0, 0);
}

/* The compiler may call these by name. */
void *memcpy(void *to, const void *from, u64 n) {
    u8 *t = to;
    const u8 *f = from;
    while (n--) *t++ = *f++;
    return to;
}
void *memset(void *to, int value, u64 n) {
    u8 *t = to;
    while (n--) *t++ = (u8)value;
    return to;
}
static void move(u8 *t, const u8 *f, u64 n) {
    if (t < f) {
        memcpy(t, f, n);
    } else {
        while (n--) t[n] = f[n];
    }
}

/* ---- what this machine is ---- */

/* Whether a child lives through an instruction. */
static int lives(void (*f)(void)) {
    i64 child = call3(N_CLONE, 17, 0, 0);
    if (child == 0) {
        f();
        leave(0);
    }
    int status = 1;
    if (child < 0 || call6(N_WAIT4, child, (i64)&status, 0, 0, 0, 0) != child) return 0;
    return status == 0;
}

#if defined(__x86_64__)
#define ARCH "x86_64"
static void cpuid(u32 leaf, u32 sub, u32 *r) {
    __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(sub));
}
static u32 length(u64 hwcap) {
    (void)hwcap;
    return 0;
}
static const struct { u8 leaf, reg, bit, state; const char *name; } BITS[] = {
    {1, 2, 0, 0, "sse3"}, {1, 2, 9, 0, "ssse3"}, {1, 2, 19, 0, "sse4.1"}, {1, 2, 20, 0, "sse4.2"}, {1, 2, 22, 0, "movbe"},
    {1, 2, 23, 0, "popcnt"}, {1, 2, 28, 6, "avx"}, {1, 2, 29, 6, "f16c"}, {1, 2, 12, 6, "fma"}, {7, 1, 3, 0, "bmi"},
    {7, 1, 8, 0, "bmi2"}, {7, 1, 5, 6, "avx2"}, {7, 1, 16, 0xe6, "avx512f"}, {7, 1, 17, 0xe6, "avx512dq"},
    {7, 1, 28, 0xe6, "avx512cd"}, {7, 1, 30, 0xe6, "avx512bw"}, {7, 1, 31, 0xe6, "avx512vl"}, {0, 2, 5, 0, "lzcnt"},
};
static void features(u64 hwcap, u64 hwcap2, void (*say)(const char *)) {
    (void)hwcap, (void)hwcap2, (void)lives;
    u32 r[3][4], state = 0, high;
    cpuid(1, 0, r[1]);
    cpuid(7, 0, r[2]);
    cpuid(0x80000001, 0, r[0]);
    if (r[1][2] >> 27 & 1) __asm__ volatile("xgetbv" : "=a"(state), "=d"(high) : "c"(0));
    for (u64 i = 0; i < sizeof BITS / sizeof *BITS; i++) {
        u32 *leaf = r[BITS[i].leaf == 7 ? 2 : BITS[i].leaf];
        if (leaf[BITS[i].reg] >> BITS[i].bit & 1 && (state & BITS[i].state) == BITS[i].state) say(BITS[i].name);
    }
}
static void flush(u8 *at, u64 n) { (void)at, (void)n; }

#elif defined(__aarch64__)
#define ARCH "aarch64"
static const struct { u8 word, bit; const char *name; } BITS[] = {
    {0, 0, "fp-armv8"}, {0, 1, "neon"}, {0, 7, "crc"}, {0, 8, "lse"}, {0, 10, "fullfp16"}, {0, 12, "rdm"}, {0, 20, "dotprod"},
    {0, 22, "sve"}, {0, 23, "fp16fml"}, {1, 1, "sve2"}, {1, 13, "i8mm"}, {1, 14, "bf16"}, {1, 23, "sme"},
};
static u32 length(u64 hwcap) {
    u64 bytes = 0;
    if (hwcap >> 22 & 1) __asm__ volatile(".arch_extension sve\n cntb %0" : "=r"(bytes));
    return (u32)bytes * 8;
}
static void features(u64 hwcap, u64 hwcap2, void (*say)(const char *)) {
    (void)lives;
    for (u64 i = 0; i < sizeof BITS / sizeof *BITS; i++)
        if ((BITS[i].word ? hwcap2 : hwcap) >> BITS[i].bit & 1) say(BITS[i].name);
}
static void flush(u8 *at, u64 n) {
    u64 ctr;
    __asm__ volatile("mrs %0, ctr_el0" : "=r"(ctr));
    u64 d = 4ul << (ctr >> 16 & 15), i = 4ul << (ctr & 15), end = (u64)at + n;
    for (u64 p = (u64)at & -d; p < end; p += d) __asm__ volatile("dc cvau, %0" ::"r"(p) : "memory");
    __asm__ volatile("dsb ish" ::: "memory");
    for (u64 p = (u64)at & -i; p < end; p += i) __asm__ volatile("ic ivau, %0" ::"r"(p) : "memory");
    __asm__ volatile("dsb ish\n isb" ::: "memory");
}

#elif defined(__riscv)
#define ARCH "riscv64"
/* What the kernel lists are single letters; the rest is tried, as encoded instructions, so that any assembler takes them. */
static void has_v(void) { __asm__ volatile(".option push\n .option arch, +v\n vsetvli t0, zero, e32, m1, ta, ma\n .option pop" ::: "t0"); }
static void has_zba(void) { __asm__ volatile(".option push\n .option arch, +zba\n sh1add t0, t0, t0\n .option pop" ::: "t0"); }
static void has_zbb(void) { __asm__ volatile(".option push\n .option arch, +zbb\n cpop t0, t0\n .option pop" ::: "t0"); }
static void has_zbs(void) { __asm__ volatile(".option push\n .option arch, +zbs\n bseti t0, t0, 1\n .option pop" ::: "t0"); }
static void has_zicond(void) { __asm__ volatile(".option push\n .option arch, +zicond\n czero.eqz t0, t0, t0\n .option pop" ::: "t0"); }
static void has_zfhmin(void) { __asm__ volatile(".option push\n .option arch, +zfhmin\n fcvt.s.h ft0, ft0\n .option pop" ::: "ft0"); }
static void has_zfh(void) { __asm__ volatile(".option push\n .option arch, +zfh\n fadd.h ft0, ft0, ft0\n .option pop" ::: "ft0"); }
static void has_zfa(void) { __asm__ volatile(".option push\n .option arch, +zfa\n fround.s ft0, ft0\n .option pop" ::: "ft0"); }
static void has_zvfhmin(void) {
    __asm__ volatile(".option push\n .option arch, +v, +zvfhmin\n vsetvli t0, zero, e16, m1, ta, ma\n vfwcvt.f.f.v v2, v1\n .option pop"
                     ::: "t0");
}
static void has_zvfh(void) {
    __asm__ volatile(".option push\n .option arch, +v, +zvfh\n vsetvli t0, zero, e16, m1, ta, ma\n vfadd.vv v1, v1, v1\n .option pop"
                     ::: "t0");
}
static const struct { void (*run)(void); const char *name; } TRIED[] = {
    {has_v, "v"}, {has_zba, "zba"}, {has_zbb, "zbb"}, {has_zbs, "zbs"}, {has_zicond, "zicond"}, {has_zfhmin, "zfhmin"},
    {has_zfh, "zfh"}, {has_zfa, "zfa"}, {has_zvfhmin, "zvfhmin"}, {has_zvfh, "zvfh"},
};
static u32 length(u64 hwcap) {
    u64 bytes = 0;
    (void)hwcap;
    if (lives(has_v)) __asm__ volatile("csrr %0, 0xc22" : "=r"(bytes));
    return (u32)bytes * 8;
}
static void features(u64 hwcap, u64 hwcap2, void (*say)(const char *)) {
    static const char *const LETTERS[] = {"m", "a", "f", "d", "c"};
    (void)hwcap2;
    for (u64 i = 0; i < 5; i++)
        if (hwcap >> (LETTERS[i][0] - 'a') & 1) say(LETTERS[i]);
    for (u64 i = 0; i < sizeof TRIED / sizeof *TRIED; i++)
        if (lives(TRIED[i].run)) say(TRIED[i].name);
}
static void flush(u8 *at, u64 n) {
    call3(N_FLUSH, (i64)at, (i64)(at + n), 0);
    __asm__ volatile("fence.i" ::: "memory");
}

#else
#define ARCH "loongarch64"
static u32 length(u64 hwcap) {
    (void)hwcap;
    return 0;
}
static void features(u64 hwcap, u64 hwcap2, void (*say)(const char *)) {
    (void)hwcap2, (void)lives;
    if (hwcap >> 2 & 1) say("ual");
    if (hwcap >> 3 & 1) say("f"), say("d");
    if (hwcap >> 4 & 1) say("lsx");
    if (hwcap >> 5 & 1) say("lasx");
}
static void flush(u8 *at, u64 n) {
    (void)at, (void)n;
    __asm__ volatile("ibar 0" ::: "memory");
}
#endif

/* ---- frames ---- */

static u8 in[12 + LARGEST], out[12 + LARGEST];
static u64 in_at, in_end, out_end;

static int read_all(u8 *to, u64 n) {
    while (n) {
        i64 got = call3(N_READ, 0, (i64)to, (i64)n);
        if (got == -4) continue;
        if (got <= 0) return 0;
        to += got;
        n -= (u64)got;
    }
    return 1;
}

static void send(u32 kind) {
    u32 head[3] = {MAGIC, kind, (u32)(out_end - 12)};
    memcpy(out, head, 12);
    for (u64 at = 0; at < out_end;) {
        i64 put = call3(N_WRITE, 1, (i64)(out + at), (i64)(out_end - at));
        if (put == -4) continue;
        if (put <= 0) leave(1);
        at += (u64)put;
    }
}

static void put(const void *from, u64 n) {
    memcpy(out + out_end, from, n);
    out_end += n;
}
static void put_u32(u32 x) { put(&x, 4); }
static void put_u64(u64 x) { put(&x, 8); }
static void put_text(const char *s) {
    u64 n = 0;
    while (s[n]) n++;
    put_u32((u32)n);
    put(s, n);
}

static void refuse(u32 code, const char *what) {
    out_end = 12;
    put_u32(code);
    put_text(what);
    send(REFUSAL);
}

/* The next number of the frame; `short_frame` is set where there is none. */
static int short_frame;
static u64 take(u64 bytes) {
    u64 x = 0;
    if (in_end - in_at < bytes) {
        short_frame = 1;
        return 0;
    }
    memcpy(&x, in + in_at, bytes);
    in_at += bytes;
    return x;
}

/* ---- memory ---- */

struct block { u64 at, bytes; };
static struct block *blocks;
static u64 count, room;

static u64 pages(u64 n) { return (n + 0xffff) & ~0xfffful; }
static u64 map(u64 n) {
    i64 at = call6(N_MMAP, 0, (i64)pages(n), 3, 0x22, -1, 0);
    return at < 0 && at > -4096 ? 0 : (u64)at;
}
static void unmap(u64 at, u64 n) { call3(N_MUNMAP, (i64)at, (i64)pages(n), 0); }

static int inside(u64 at, u64 n) {
    for (u64 i = 0; i < count; i++)
        if (at >= blocks[i].at && at - blocks[i].at <= blocks[i].bytes && n <= blocks[i].bytes - (at - blocks[i].at)) return 1;
    return 0;
}

static u64 keep(u64 bytes) {
    if (bytes > 1ul << 46) return 0;
    if (count == room) {
        u64 more = room ? 2 * room : 1024;
        u64 table = map(more * sizeof *blocks);
        if (!table) return 0;
        memcpy((void *)table, blocks, count * sizeof *blocks);
        if (room) unmap((u64)blocks, room * sizeof *blocks);
        blocks = (struct block *)table;
        room = more;
    }
    u64 at = map(bytes ? bytes : 1);
    if (at) blocks[count++] = (struct block){at, bytes};
    return at;
}

static int drop(u64 at) {
    for (u64 i = 0; i < count; i++) {
        if (blocks[i].at != at) continue;
        unmap(at, blocks[i].bytes ? blocks[i].bytes : 1);
        blocks[i] = blocks[--count];
        return 1;
    }
    return 0;
}

/* Code lies in blocks of its own, which are never given back. */
static struct block code[1 << 16];
static u64 codes;
static u64 scratch, scratch_bytes;

/* ---- requests ---- */

struct buf { u64 at; i64 len; };
typedef void kernel(const struct buf *, const i64 *, const i64 *, i64, i64, u8 *);

enum { ARGS = 4096 };
static struct buf bufs[ARGS];
static i64 scalars[ARGS];

static void alarm_in(u64 seconds) {
    i64 t[4] = {0, 0, (i64)seconds, 0};
    call3(N_SETITIMER, 0, (i64)t, 0);
}

static void launch(void) {
    u64 index = take(8), offset = take(8), need = take(8), limit = take(8);
    i64 grid[3] = {(i64)take(8), (i64)take(8), (i64)take(8)};
    i64 first = (i64)take(8), last = (i64)take(8);
    u64 nb = take(4), ns = take(4);
    if (short_frame || nb > ARGS || ns > ARGS) return refuse(E_FRAME, "a launch of another form");
    if (index >= codes || offset >= code[index].bytes) return refuse(E_ADDRESS, "no such code");
    for (u64 i = 0; i < nb; i++) {
        u64 at = take(8), bytes = take(8);
        i64 len = (i64)take(8);
        if (short_frame) return refuse(E_FRAME, "a launch of another form");
        if (len < 0 || !inside(at, bytes)) return refuse(E_ADDRESS, "a buffer outside the memory given out");
        bufs[i] = (struct buf){at, len};
    }
    for (u64 i = 0; i < ns; i++) scalars[i] = (i64)take(8);
    if (short_frame || in_at != in_end) return refuse(E_FRAME, "a launch of another form");
    u64 total = 1;
    for (int i = 0; i < 3; i++)
        if (grid[i] < 0 || __builtin_mul_overflow(total, (u64)grid[i], &total)) return refuse(E_ARGUMENT, "a grid of no size");
    if (first < 0 || last < first || (u64)last > total) return refuse(E_ARGUMENT, "instances outside the grid");
    if (need > scratch_bytes) {
        if (scratch) unmap(scratch, scratch_bytes);
        scratch = map(need);
        scratch_bytes = scratch ? need : 0;
        if (!scratch) return refuse(E_MEMORY, "no memory for scratch");
    }
    i64 before[2], after[2];
    if (limit) alarm_in(limit);
    call3(N_TIME, 1, (i64)before, 0);
    if (first < last) ((kernel *)(code[index].at + offset))(bufs, scalars, grid, first, last, (u8 *)scratch);
    call3(N_TIME, 1, (i64)after, 0);
    if (limit) alarm_in(0);
    put_u64((u64)((after[0] - before[0]) * 1000000000 + after[1] - before[1]));
    send(ANSWER | LAUNCH);
}

static u32 names;
static void count_name(const char *s) {
    (void)s;
    names++;
}

static void serve(u32 kind, u64 hwcap, u64 hwcap2) {
    out_end = 12;
    switch (kind) {
    case HELLO: {
        if (take(4) != VERSION || short_frame || in_at != in_end) return refuse(E_FRAME, "another version of the protocol");
        put_u32(VERSION);
        put_u32(length(hwcap));
        put_text(ARCH);
        u64 place = out_end;
        put_u32(0);
        names = 0;
        features(hwcap, hwcap2, count_name);
        memcpy(out + place, &names, 4);
        features(hwcap, hwcap2, put_text);
        return send(ANSWER | HELLO);
    }
    case ALLOC: {
        u64 bytes = take(8);
        if (short_frame || in_at != in_end) break;
        u64 at = keep(bytes);
        if (!at) return refuse(E_MEMORY, "no memory");
        put_u64(at);
        return send(ANSWER | ALLOC);
    }
    case FREE: {
        u64 at = take(8);
        if (short_frame || in_at != in_end) break;
        if (!drop(at)) return refuse(E_ADDRESS, "no such block");
        return send(ANSWER | FREE);
    }
    case WRITE: {
        u64 at = take(8);
        if (short_frame) break;
        if (!inside(at, in_end - in_at)) return refuse(E_ADDRESS, "outside the memory given out");
        memcpy((void *)at, in + in_at, in_end - in_at);
        return send(ANSWER | WRITE);
    }
    case READ: {
        u64 at = take(8), n = take(4);
        if (short_frame || in_at != in_end || n > LARGEST) break;
        if (!inside(at, n)) return refuse(E_ADDRESS, "outside the memory given out");
        put((void *)at, n);
        return send(ANSWER | READ);
    }
    case COPY: {
        u64 to = take(8), from = take(8), n = take(8);
        if (short_frame || in_at != in_end) break;
        if (!inside(to, n) || !inside(from, n)) return refuse(E_ADDRESS, "outside the memory given out");
        move((u8 *)to, (u8 *)from, n);
        return send(ANSWER | COPY);
    }
    case CODE: {
        u64 from = take(8), n = take(8);
        if (short_frame || in_at != in_end) break;
        if (!inside(from, n)) return refuse(E_ADDRESS, "outside the memory given out");
        u64 at = codes < sizeof code / sizeof *code ? map(n ? n : 1) : 0;
        if (!at) return refuse(E_MEMORY, "no memory for code");
        memcpy((void *)at, (void *)from, n);
        if (call3(N_MPROTECT, (i64)at, (i64)pages(n ? n : 1), 5) < 0) return refuse(E_MEMORY, "code cannot be made executable");
        flush((u8 *)at, n);
        code[codes] = (struct block){at, n};
        put_u64(codes++);
        return send(ANSWER | CODE);
    }
    case LAUNCH:
        return launch();
    case BYE:
        send(ANSWER | BYE);
        leave(0);
        return;
    default:
        return refuse(E_KIND, "no such request");
    }
    refuse(E_FRAME, "a request of another form");
}

__attribute__((used)) void begin(u64 *stack) {
    u64 hwcap = 0, hwcap2 = 0;
    u64 *p = stack + 1 + stack[0] + 1;
    while (*p) p++;
    for (p++; *p; p += 2) {
        if (p[0] == 16) hwcap = p[1];
        if (p[0] == 26) hwcap2 = p[1];
    }
    u32 head[3];
    for (;;) {
        if (!read_all((u8 *)head, 12)) leave(0);
        if (head[0] != MAGIC || head[2] > LARGEST) {
            refuse(E_FRAME, "not a frame");
            leave(1);
        }
        if (!read_all(in, head[2])) leave(1);
        in_at = 0;
        in_end = head[2];
        short_frame = 0;
        serve(head[1], hwcap, hwcap2);
    }
}
