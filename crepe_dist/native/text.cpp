// C function that encodes texts as character ids, by table look-up. crepe_dist/data/char_encoder.py calls it through
// ctypes.

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "constants.hpp"

#if defined(__AVX512VBMI__)
#include <immintrin.h>
#endif

namespace {

// Writes the character ids of `count` code points to `out`, in reverse order if `reversed` is true.
template <class Point>
void look_up(const Point* points, int64_t count, bool reversed, const uint8_t* table, uint8_t* out) {
    if (reversed)
        for (int64_t i = 0; i < count; ++i) out[i] = table[points[count - 1 - i]];
    else
        for (int64_t i = 0; i < count; ++i) out[i] = table[points[i]];
}

#if defined(__AVX512VBMI__)
// The same function for ASCII texts, 64 characters at a time. The first 128 elements of the table fit in two registers,
// and VPERMI2B (AVX512-VBMI) selects 64 of these elements in one instruction.
void look_up(const uint8_t* points, int64_t count, bool reversed, const uint8_t* table, uint8_t* out) {
    const __m512i low = _mm512_loadu_si512(table), high = _mm512_loadu_si512(table + 64);
    alignas(64) uint8_t steps[64];
    for (int i = 0; i < 64; ++i) steps[i] = uint8_t(i);
    const __m512i forward = _mm512_load_si512(steps);
    for (int64_t done = 0; done < count; done += 64) {
        const int64_t chunk = std::min<int64_t>(64, count - done);
        const __mmask64 mask = ~0ull >> (64 - chunk);
        const uint8_t* from = reversed ? points + count - done - chunk : points + done;
        __m512i codes = _mm512_permutex2var_epi8(low, _mm512_maskz_loadu_epi8(mask, from), high);
        if (reversed)
            codes = _mm512_permutexvar_epi8(_mm512_sub_epi8(_mm512_set1_epi8(char(chunk - 1)), forward), codes);
        _mm512_mask_storeu_epi8(out + done, mask, codes);
    }
}
#endif

template <class Point>
void encode(
    const Point* points, const int64_t* ends, int64_t texts, int64_t length, bool reversed, const uint8_t* table,
    uint8_t* out
) {
    int64_t start = 0;
    for (int64_t text = 0; text < texts; ++text, out += length) {
        const int64_t count = std::min(length, ends[text] - start);
        look_up(reversed ? points + ends[text] - count : points + start, count, reversed, table, out);
        std::memset(out + count, BLANK, length - count);
        start = ends[text];
    }
}

}  // namespace

// Encodes the first `length` code points of each text. If `reversed` is 1, it encodes the last `length` code points in
// reverse order.
//
// points: concatenated texts. size: bytes of a code point, 1 (ASCII) or 4. ends: end of each text, in code points
// [texts]. table: character id of each code point. out: character ids [texts][length], padded with BLANK.
extern "C" void crepe_encode(
    const void* points, int size, const int64_t* ends, int64_t texts, int64_t length, int reversed,
    const uint8_t* table, uint8_t* out
) {
    if (size == 1)
        encode(static_cast<const uint8_t*>(points), ends, texts, length, reversed, table, out);
    else
        encode(static_cast<const uint32_t*>(points), ends, texts, length, reversed, table, out);
}
