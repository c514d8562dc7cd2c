// Products of weights in 4 or 8 bits with activations in 8, and attention over pages, for x86 processors with AVX2,
// FMA and F16C; twice as fast with AVX512-VNNI.
//
// Weights lie in blocks of 16 rows by 32 columns: first their codes, then 16 scales in half precision, then in 4 bits 16
// minima. A value is code * scale + minimum with codes 0..15, as in GGUF's Q4_1, or (code - 128) * scale with codes 1..255,
// as in its Q8_0. Byte i of 64 codes in 8 bits belongs to row i / 4 and column i % 4, the next 64 are four columns further;
// in 4 bits, column i % 4 has the lower half of the byte and column 16 + i % 4 the upper one. Activations are rounded to 8
// bits with a scale for each 32 of a row, as llama.cpp does, so that sums of products are whole numbers.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t ROWS = 16, GROUP = 32, SLICE = 256;

constexpr int64_t bytes(int bits) { return bits == 4 ? 320 : 544; }  // of a block
constexpr float LOWEST = 1e-12f;

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
#define WIDE
constexpr int64_t LANES = 16;
#else
constexpr int64_t LANES = 8;
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int Ints __attribute__((vector_size(4 * LANES)));
typedef unsigned char Bytes __attribute__((vector_size(4 * LANES)));

template <typename Kind>
Kind load(const void* from) {
  Kind found;
  std::memcpy(&found, from, sizeof found);
  return found;
}

void store(float* to, Floats values) { std::memcpy(to, &values, sizeof values); }

float sum(Floats values) {
#ifdef WIDE
  return _mm512_reduce_add_ps(reinterpret_cast<__m512>(values));
#else
  const __m256 all = reinterpret_cast<__m256>(values);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#endif
}

Floats halves(const unsigned char* from) {
#ifdef WIDE
  return reinterpret_cast<Floats>(_mm512_cvtph_ps(load<__m256i>(from)));
#else
  return reinterpret_cast<Floats>(_mm256_cvtph_ps(load<__m128i>(from)));
#endif
}

// Sums of the products of codes with activations over a group, for each lane.
template <int BITS>
struct Sums {
#ifdef WIDE
  static constexpr float OFFSET = -128;  // of codes in 8 bits
  __m512i made = _mm512_setzero_si512();

  void add(Bytes codes, int four) {
    made = _mm512_dpbusd_epi32(made, reinterpret_cast<__m512i>(codes), _mm512_set1_epi32(four));
  }

  Ints total() const { return reinterpret_cast<Ints>(made); }
#else
  static constexpr float OFFSET = 0;  // it is taken away before
  __m256i made = _mm256_setzero_si256();

  // Of 4 bits all sums of a group fit 16 bits: 16 products of at most 15 * 127. Of 8 bits only two products do, of the code
  // without its offset.
  void add(Bytes codes, int four) {
    const __m256i x = _mm256_set1_epi32(four), ones = _mm256_set1_epi16(1);
    if (BITS == 4) {
      made = _mm256_add_epi16(made, _mm256_maddubs_epi16(reinterpret_cast<__m256i>(codes), x));
    } else {
      const __m256i code = reinterpret_cast<__m256i>(codes ^ 128);
      const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(code), _mm256_sign_epi8(x, code));
      made = _mm256_add_epi32(made, _mm256_madd_epi16(pairs, ones));
    }
  }

  Ints total() const {
    return reinterpret_cast<Ints>(BITS == 4 ? _mm256_madd_epi16(made, _mm256_set1_epi16(1)) : made);
  }
#endif
};

// exp: 2^n times a polynomial (Taylor, to the 6th power) of the rest; relative error about 1e-7. NaN stays NaN.
Floats exponential(Floats x) {
  x = x < -87 ? Floats{} - 87 : x > 88 ? Floats{} + 88 : x;
  const Floats shift = Floats{} + 12582912.0f;  // 1.5 * 2^23, to which a sum is rounded to whole numbers
  const Floats n = (x * 1.44269504f + shift) - shift;
  const Floats rest = x - n * 0.693145752f - n * 1.42860677e-6f;
  Floats made = rest * (1 / 720.0f) + 1 / 120.0f;
  made = made * rest + 1 / 24.0f;
  made = made * rest + 1 / 6.0f;
  made = made * rest + 0.5f;
  made = made * rest + 1.0f;
  made = made * rest + 1.0f;
  return made * reinterpret_cast<Floats>((__builtin_convertvector(n, Ints) + 127) << 23);
}

// Rows of activations in 8 bits; of each group the scale, times the factor of the weights, and that times its sum.
struct Rounded {
  std::vector<int8_t> numbers;
  std::vector<float> scales, sums;

  void resize(int64_t rows, int64_t columns) {
    if (static_cast<int64_t>(numbers.size()) < rows * columns) numbers.resize(rows * columns);
    if (static_cast<int64_t>(scales.size()) < rows * columns / GROUP) {
      scales.resize(rows * columns / GROUP);
      sums.resize(rows * columns / GROUP);
    }
  }

  void round(const float* x, int64_t row, int64_t columns, float factor) {
    for (int64_t group = 0; group < columns / GROUP; ++group) {
      const float* from = x + group * GROUP;
      float most = 0, wrong = 0;
#pragma omp simd reduction(max : most) reduction(+ : wrong)
      for (int64_t i = 0; i < GROUP; ++i) {
        most = std::max(most, std::fabs(from[i]));
        wrong += from[i] - from[i];  // NaN if there is one, or an infinity
      }
      const bool usable = most > LOWEST && wrong == 0;
      const float scale = most / 127 * factor + wrong, inverse = 127 / most;
      int8_t* to = numbers.data() + row * columns + group * GROUP;
      int total = 0;
#pragma omp simd reduction(+ : total)
      for (int64_t i = 0; i < GROUP; ++i) {
        const int number = usable ? static_cast<int>(std::nearbyint(from[i] * inverse)) : 0;
        to[i] = static_cast<int8_t>(number);
        total += number;
      }
      scales[row * columns / GROUP + group] = scale;
      sums[row * columns / GROUP + group] = scale * static_cast<float>(total);
    }
  }
};

// LANES columns of the result for COUNT rows. block: of the first group; part: which LANES of its 16 rows.
template <int BITS, int COUNT>
void tile(const Rounded& x, int64_t row, int64_t columns, const unsigned char* block, int64_t part, Floats* found) {
  const int64_t groups = columns / GROUP;
  const int8_t* numbers = x.numbers.data() + row * columns;
  const float *scales = x.scales.data() + row * groups, *sums = x.sums.data() + row * groups;
  Floats made[COUNT] = {};
  for (int64_t group = 0; group < groups; ++group, block += bytes(BITS)) {
    Sums<BITS> parts[COUNT];
    const unsigned char* codes = block + 4 * LANES * part;
    for (int j = 0; j < 4; ++j) {
      Bytes low = load<Bytes>(codes + 64 * j), high;
      if (BITS == 4) {
        high = low >> 4;
        low &= 15;
      } else {
        high = load<Bytes>(codes + 64 * j + 256);
      }
      for (int i = 0; i < COUNT; ++i) {
        const int8_t* own = numbers + i * columns + group * GROUP + 4 * j;
        parts[i].add(low, load<int>(own));
        parts[i].add(high, load<int>(own + 16));
      }
    }
    const unsigned char* pairs = block + (BITS == 4 ? 256 : 512) + 2 * LANES * part;
    const Floats scale = halves(pairs), least = BITS == 4 ? halves(pairs + 32) : scale * Sums<BITS>::OFFSET;
    for (int i = 0; i < COUNT; ++i)
      made[i] += __builtin_convertvector(parts[i].total(), Floats) * (scale * scales[i * groups + group]) +
                 least * sums[i * groups + group];
  }
  for (int i = 0; i < COUNT; ++i) found[i] = made[i];
}

// 16 columns of the result for all rows.
template <int BITS>
void column(const Rounded& x, int64_t rows, int64_t columns, const unsigned char* block, int64_t outputs, float* out) {
  constexpr int MOST = LANES == 16 ? 8 : 4;
  for (int64_t part = 0; part < ROWS / LANES; ++part, out += LANES) {
    for (int64_t row = 0; row < rows;) {
      Floats found[8];
      const int64_t left = rows - row, count = left >= MOST ? MOST : left >= 4 ? 4 : left >= 2 ? 2 : 1;
      switch (count) {
        case 8: tile<BITS, 8>(x, row, columns, block, part, found); break;
        case 4: tile<BITS, 4>(x, row, columns, block, part, found); break;
        case 2: tile<BITS, 2>(x, row, columns, block, part, found); break;
        default: tile<BITS, 1>(x, row, columns, block, part, found);
      }
      for (int64_t i = 0; i < count; ++i, ++row) store(out + row * outputs, found[i]);
    }
  }
}

// A row of what is rounded: x (columns) divided by sqrt(|x|^2 + floor) and times norm, or silu(gate) * up of x (2 columns).
void prepare(const float* x, int64_t columns, const float* norm, float floor, bool gated, float* made) {
  if (gated) {
    for (int64_t i = 0; i < columns; i += LANES) {
      const Floats gate = load<Floats>(x + i);
      store(made + i, gate / (1 + exponential(-gate)) * load<Floats>(x + columns + i));
    }
    return;
  }
  float squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < columns; ++i) squares += x[i] * x[i];
  const float scale = 1 / std::sqrt(squares + floor);
  for (int64_t i = 0; i < columns; ++i) made[i] = x[i] * scale * norm[i];
}

}  // namespace

// out (rows, outputs) = x times weights times factor, plus bias (outputs) and plus (rows, outputs) where they are.
extern "C" void kiban_product(const float* x, int64_t rows, int64_t columns, const float* norm, float floor, int gated,
                              const unsigned char* weights, int bits, int64_t outputs, float factor, const float* bias,
                              const float* plus, float* out, int threads) {
  if (rows > SLICE) {  // so that what is kept here stays small
    for (int64_t row = 0; row < rows; row += SLICE)
      kiban_product(x + row * columns * (gated ? 2 : 1), std::min(SLICE, rows - row), columns, norm, floor, gated, weights,
                    bits, outputs, factor, bias, plus != nullptr ? plus + row * outputs : nullptr, out + row * outputs,
                    threads);
    return;
  }
  static thread_local Rounded kept;  // of the thread that calls; its own threads share it
  Rounded& rounded = kept;
  rounded.resize(rows, columns);
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> made(norm != nullptr || gated ? columns : 0);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
      const float* from = x + row * columns * (gated ? 2 : 1);
      if (!made.empty()) {
        prepare(from, columns, norm, floor, gated, made.data());
        from = made.data();
      }
      rounded.round(from, row, columns, factor);
    }
#pragma omp for schedule(static)
    for (int64_t first = 0; first < outputs; first += ROWS) {
      const unsigned char* block = weights + first / ROWS * (columns / GROUP) * bytes(bits);
      const auto take = bits == 4 ? column<4> : column<8>;
      take(rounded, rows, columns, block, outputs, out + first);
      if (bias == nullptr && plus == nullptr) continue;
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t i = first; i < first + ROWS; i += LANES) {
          const int64_t at = row * outputs + i;
          Floats made = load<Floats>(out + at);
          if (bias != nullptr) made += load<Floats>(bias + i);
          if (plus != nullptr) made += load<Floats>(plus + at);
          store(out + at, made);
        }
    }
  }
}

// One query of each of `answers`: q (answers, heads, size) with `step` numbers from answer to answer, out (answers, heads,
// size). both: keys and behind them values of a layer, (2 kv_heads, places, size). Answer i sees its first end[i] tokens;
// token t lies at pages[first[i] + t / page] * page + t % page. size is divisible by 16.
extern "C" void kiban_attend(const float* q, int64_t answers, int64_t step, int64_t heads, int64_t kv_heads, int64_t size,
                             const float* both, int64_t places, const int64_t* pages, int64_t page, const int64_t* first,
                             const int64_t* end, float* out, int threads) {
  const int64_t group = heads / kv_heads;
  const float by = 1 / std::sqrt(static_cast<float>(size));
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> scores;
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < answers * kv_heads; ++task) {
      const int64_t answer = task / kv_heads, kv = task % kv_heads, length = end[answer];
      const float *keys = both + kv * places * size, *values = both + (kv_heads + kv) * places * size;
      const float* query = q + answer * step + kv * group * size;
      float* to = out + (answer * heads + kv * group) * size;
      const int64_t room = (length + 15) / 16 * 16;
      if (static_cast<int64_t>(scores.size()) < group * room) scores.resize(group * room);
      const int64_t* own = pages + first[answer];
      const auto place = [&](int64_t i) { return (own[i / page] * page + i % page) * size; };
      for (int64_t i = 0; i < length; ++i) {
        const float* key = keys + place(i);
        for (int64_t head = 0; head < group; ++head) {
          Floats made{};
          for (int64_t part = 0; part < size; part += LANES) made += load<Floats>(key + part) * load<Floats>(query + head * size + part);
          scores[head * room + i] = sum(made) * by;
        }
      }
      for (int64_t head = 0; head < group; ++head) {
        float *row = scores.data() + head * room, most = -INFINITY, total = 0;
#pragma omp simd reduction(max : most)
        for (int64_t i = 0; i < length; ++i) most = std::max(most, row[i]);
        for (int64_t i = 0; i < length; i += LANES) store(row + i, exponential(load<Floats>(row + i) - most));
#pragma omp simd reduction(+ : total)
        for (int64_t i = 0; i < length; ++i) total += row[i];
        for (int64_t i = 0; i < length; ++i) row[i] /= total;
      }
      std::fill(to, to + group * size, 0.0f);
      for (int64_t i = 0; i < length; ++i) {
        const float* value = values + place(i);
        for (int64_t head = 0; head < group; ++head)
          for (int64_t part = 0; part < size; part += LANES) {
            float* here = to + head * size + part;
            store(here, load<Floats>(here) + load<Floats>(value + part) * scores[head * room + i]);
          }
      }
    }
  }
}
