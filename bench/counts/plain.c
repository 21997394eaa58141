/* What a C programmer writes for a few operations, to count the instructions of a compiler's output by: the loops in the order in which it
 * vectorises them, no intrinsics. `TURNS` runs it again, so that the difference of two counts is that of one run. */

#include <math.h>
#include <stddef.h>

#ifndef TURNS
#define TURNS 1
#endif

#define ROWS 64
#define COLUMNS 256
#define DEPTH 192
#define IMAGE 28
#define CHANNELS 32

typedef float f32;

static f32 a[1 << 18], b[1 << 18], c[1 << 18], d[1 << 12];

/* c[ROWS, COLUMNS] = a[ROWS, DEPTH] b[DEPTH, COLUMNS] */
static void matmul(void) {
    for (size_t i = 0; i < ROWS; i++) {
        for (size_t j = 0; j < COLUMNS; j++) c[i * COLUMNS + j] = 0;
        for (size_t k = 0; k < DEPTH; k++)
            for (size_t j = 0; j < COLUMNS; j++) c[i * COLUMNS + j] += a[i * DEPTH + k] * b[k * COLUMNS + j];
    }
}

/* c[ROWS, COLUMNS] = softmax of a along COLUMNS */
static void softmax(void) {
    for (size_t i = 0; i < ROWS; i++) {
        const f32 *x = a + i * COLUMNS;
        f32 *y = c + i * COLUMNS, most = x[0], sum = 0;
        for (size_t j = 1; j < COLUMNS; j++) most = x[j] > most ? x[j] : most;
        for (size_t j = 0; j < COLUMNS; j++) sum += y[j] = expf(x[j] - most);
        for (size_t j = 0; j < COLUMNS; j++) y[j] /= sum;
    }
}

/* c = layer normalisation of a along COLUMNS, scaled by b and moved by d */
static void layernorm(void) {
    for (size_t i = 0; i < ROWS; i++) {
        const f32 *x = a + i * COLUMNS;
        f32 *y = c + i * COLUMNS, mean = 0, spread = 0;
        for (size_t j = 0; j < COLUMNS; j++) mean += x[j];
        mean /= COLUMNS;
        for (size_t j = 0; j < COLUMNS; j++) spread += (x[j] - mean) * (x[j] - mean);
        f32 scale = 1 / sqrtf(spread / COLUMNS + 1e-5f);
        for (size_t j = 0; j < COLUMNS; j++) y[j] = (x[j] - mean) * scale * b[j] + d[j];
    }
}

/* c = max(a + b, 0) */
static void add_relu(void) {
    for (size_t i = 0; i < ROWS * COLUMNS; i++) {
        f32 y = a[i] + b[i];
        c[i] = y > 0 ? y : 0;
    }
}

/* c[IMAGE, IMAGE, CHANNELS] = 3 x 3 convolution of a[IMAGE + 2, IMAGE + 2, CHANNELS] by b[3, 3, CHANNELS, CHANNELS] */
static void conv(void) {
    for (size_t y = 0; y < IMAGE; y++)
        for (size_t x = 0; x < IMAGE; x++) {
            f32 *out = c + (y * IMAGE + x) * CHANNELS;
            for (size_t o = 0; o < CHANNELS; o++) out[o] = 0;
            for (size_t v = 0; v < 3; v++)
                for (size_t u = 0; u < 3; u++)
                    for (size_t i = 0; i < CHANNELS; i++) {
                        f32 w = a[((y + v) * (IMAGE + 2) + x + u) * CHANNELS + i];
                        const f32 *k = b + ((v * 3 + u) * CHANNELS + i) * CHANNELS;
                        for (size_t o = 0; o < CHANNELS; o++) out[o] += w * k[o];
                    }
        }
}

int main(void) {
    for (size_t i = 0; i < 1 << 18; i++) a[i] = (f32)(i % 97) / 97 - 0.5f, b[i] = (f32)(i % 89) / 89 - 0.5f;
    for (size_t i = 0; i < 1 << 12; i++) d[i] = (f32)(i % 83) / 83;
    for (int turn = 0; turn < TURNS; turn++) {
        __asm__ volatile("" ::: "memory");
        KERNEL();
    }
    f32 sum = 0;
    for (size_t i = 0; i < 1 << 18; i++) sum += c[i];
    return sum == 12345.f;
}
