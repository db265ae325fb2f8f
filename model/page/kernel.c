// One convolution of the page's network, with its bias, the map that is added to it and the ReLU, in WebAssembly SIMD.
// kernel.b64 is this file, compiled by:
//
//   clang --target=wasm32 -O2 -msimd128 -nostdlib -ffreestanding -Wl,--no-entry,--strip-all,--import-memory
//     -Wl,-z,stack-size=0 -o kernel.wasm kernel.c && base64 -w 120 kernel.wasm > kernel.b64
//
// Places and pitches are counted in floats from the start of the memory. A map has rows, columns and channels, and its
// pitch is the way from one row to the next. Weights are [outputs / 8][kernel][kernel][inputs][8], with the biases
// behind them; `added` is the way from the target to the map that is added, 0 if there is none. Four pixels x eight
// outputs are summed at once, in eight registers.
#include <wasm_simd128.h>

#define AT(place) ((float *)((unsigned)(place) * 4u))
#define LOAD(place) wasm_v128_load(AT(place))
#define ADD wasm_f32x4_add
#define TIMES(pixel, weights) wasm_f32x4_mul(wasm_v128_load32_splat(pixel), weights)

static void finish(v128_t sum, int place, int added, int relu) {
  if (added) sum = ADD(sum, LOAD(place + added));
  if (relu) sum = wasm_f32x4_max(wasm_f32x4_splat(0), sum);
  wasm_v128_store(AT(place), sum);
}

__attribute__((export_name("convolve")))
void convolve(int source, int source_pitch, int weights, int inputs, int outputs, int kernel, int stride, int dilation,
              int side, int added, int relu, int target, int target_pitch) {
  const int step = stride * inputs, biases = weights + kernel * kernel * inputs * outputs;
  for (int output = 0; output < outputs; output += 8) {
    for (int row = 0; row < side; row++) {
      for (int column = 0; column < side; column += 4) {
        // Past the last pixel of a row, that pixel is computed again and not stored
        const int left = side - 1 - column;
        const int one = left < 1 ? 0 : step, two = left < 2 ? one : 2 * step, three = left < 3 ? two : 3 * step;
        v128_t a0 = LOAD(biases + output), a1 = a0, a2 = a0, a3 = a0;
        v128_t b0 = LOAD(biases + output + 4), b1 = b0, b2 = b0, b3 = b0;
        const float *w = AT(weights + output * kernel * kernel * inputs);
        for (int i = 0; i < kernel; i++) {
          for (int j = 0; j < kernel; j++) {
            const float *x = AT(source + (row * stride + i * dilation) * source_pitch
                                + (column * stride + j * dilation) * inputs);
            for (const float *end = x + inputs; x < end; x++, w += 8) {
              const v128_t a = wasm_v128_load(w), b = wasm_v128_load(w + 4);
              a0 = ADD(a0, TIMES(x, a)), b0 = ADD(b0, TIMES(x, b));
              a1 = ADD(a1, TIMES(x + one, a)), b1 = ADD(b1, TIMES(x + one, b));
              a2 = ADD(a2, TIMES(x + two, a)), b2 = ADD(b2, TIMES(x + two, b));
              a3 = ADD(a3, TIMES(x + three, a)), b3 = ADD(b3, TIMES(x + three, b));
            }
          }
        }
        int place = target + row * target_pitch + column * outputs + output;
        finish(a0, place, added, relu), finish(b0, place + 4, added, relu);
        if (left < 1) continue;
        place += outputs, finish(a1, place, added, relu), finish(b1, place + 4, added, relu);
        if (left < 2) continue;
        place += outputs, finish(a2, place, added, relu), finish(b2, place + 4, added, relu);
        if (left < 3) continue;
        place += outputs, finish(a3, place, added, relu), finish(b3, place + 4, added, relu);
      }
    }
  }
}
