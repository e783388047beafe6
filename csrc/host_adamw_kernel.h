// AdamW of one tensor: formulas and order of operations of kernels/adamw.py, codes of kernels/quantize.py.
// Included by host_adamw.cpp once for each instruction set, in the namespace of its lanes; so no include guard here.

INLINE Lanes& at(float* p) { return *reinterpret_cast<Lanes*>(p); }
INLINE const Lanes& at(const float* p) { return *reinterpret_cast<const Lanes*>(p); }
INLINE IntLanes bits_of(Lanes x) { return bit_cast<IntLanes>(x); }
INLINE Lanes of_bits(IntLanes x) { return bit_cast<Lanes>(x); }

INLINE Lanes load_gradient(const float* p) { return at(p); }
INLINE Lanes load_gradient(const uint16_t* bf16) { return of_bits(load(bf16) << 16); }

// The numbers of a step in every lane: locals, since the compiler would read `Constants` again after each store.
struct Wide {
  Lanes scale, rest1, rest2, eps, root, decay, move;

  INLINE explicit Wide(const Constants& c)
      : scale(Lanes{} + c.scale), rest1(Lanes{} + c.rest1), rest2(Lanes{} + c.rest2), eps(Lanes{} + c.eps),
        root(Lanes{} + c.root), decay(Lanes{} + c.decay), move(Lanes{} + c.move) {}
};

// n is a multiple of kLanes here, and at most kGroup, so that everything stays in the first cache from loop to loop. One
// loop for all would be slower: from a code to a weight is too long a chain for the processor to have enough of them in
// flight, and the divider waits.
template <class Gradient>
INLINE void advance(const Wide& c, const Gradient* gradient, float* ms, float* vs, float* ws, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const Lanes g = load_gradient(gradient + i) * c.scale, m_old = at(ms + i), v_old = at(vs + i), w = at(ws + i);
    const Lanes m = m_old + (g - m_old) * c.rest1;
    const Lanes v = v_old + (g * g - v_old) * c.rest2;
    at(ws + i) = w - (w * c.decay + m / (square_root(v) * c.root + c.eps) * c.move);
    at(ms + i) = m;
    at(vs + i) = v;
  }
}

// To bf16: nearest, ties to even. NaN becomes the canonical one, since the nearest pattern of some NaNs is infinity's.
INLINE void narrow(const float* ws, uint16_t* out, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const Lanes w = at(ws + i);
    const UintLanes bits = bit_cast<UintLanes>(w);
    const UintLanes rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    store(out + i, w == w ? bit_cast<IntLanes>(rounded) : IntLanes{} + 0x7FC0);
  }
}

// Elements [begin, end) of a tensor with fp32 moments.
template <class Gradient, bool kOut>
INLINE void update_fp32(const Constants& c, const HostTensor& t, int64_t begin, int64_t end) {
  const Wide wide(c);
  const Gradient* const gradient = static_cast<const Gradient*>(t.gradient);
  float *const ms = static_cast<float*>(t.exp_avg), *const vs = static_cast<float*>(t.exp_avg_sq);
  int64_t i = begin;
  while (i + kLanes <= end) {
    const int64_t n = std::min(kGroup, (end - i) / kLanes * kLanes);
    advance(wide, gradient + i, ms + i, vs + i, t.weight + i, n);
    if constexpr (kOut) narrow(t.weight + i, t.out + i, n);
    i += n;
  }
  if constexpr (kLanes > 1) plain::update_fp32<Gradient, kOut>(c, t, i, end);
}

INLINE Lanes size_of(Lanes x) { return of_bits(bits_of(x) & INT32_MAX); }
INLINE Lanes cubed(Lanes x) { return x * x * x; }
INLINE Lanes eighth_power(Lanes x) {
  x = x * x;
  x = x * x;
  return x * x;
}

INLINE Lanes decode_first(IntLanes code, float scale) { return cubed(to_float(code) * kPerFirst) * scale; }
INLINE Lanes decode_second(IntLanes code, float scale) { return eighth_power(to_float(code) * kPerSecond) * scale; }

// In a group with infinities or NaN, x is NaN or 0; the comparisons are such that the codes are the reference's then too.
INLINE IntLanes encode_first(Lanes m, float inverse, Lanes dither) {
  const Lanes x = larger(size_of(m) * inverse, kTiny);
  const Lanes y = of_bits(bit_cast<IntLanes>(bit_cast<UintLanes>(x) / 3 + kCubeRoot)), cube = cubed(y);
  const Lanes root = y * (cube + x * 2) / (cube * 2 + x) * kFirst;
  const IntLanes code = truncated(smaller(root + (root < kDithered ? kLastDither - dither : Lanes{} + 0.5f), kFirst));
  return with_sign(root < kLeast ? IntLanes{} : code, bits_of(m));
}

// 255 times the eighth root of x, cut off, at most 254. Three exact roots keep the divider busy for longer than all else,
// so they are taken only where a guess, right to kUnsure / 2 of a code, is near an integer: for 1 in 500 elements. The
// guess is one step of Newton's method from the processor's approximate inverse roots. The largest of each group and zeros
// are kept away from integers by the bounds.
INLINE Lanes code_below(Lanes x) {
  const Lanes bounded = larger(x, kHalfACode), fourth = inverse_root_guess(inverse_root_guess(bounded));
  const Lanes y = fourth * inverse_root_guess(fourth);
  const Lanes off = bounded / eighth_power(y) - 1;
  const Lanes root = smaller(y * ((off * (kSecond * -7 / 128) + kSecond / 8) * off + kSecond), kSecond - 0.5f);
  const Lanes below = to_float(truncated(root));
  if (any(size_of(root - below - 0.5f) > 0.5f - kUnsure)) [[unlikely]]
    return to_float(truncated(smaller(square_root(square_root(square_root(x))) * kSecond, kSecond - 0.5f)));
  return below;
}

INLINE IntLanes encode_second(Lanes v, Lanes below, float inverse, Lanes dither) {
  const Lanes x = v * inverse;
  const Lanes low = eighth_power(below * kPerSecond), high = eighth_power((below + 1) * kPerSecond);
  const Lanes code = x - low > (high - low) * dither ? below + 1 : below;
  return truncated(v > 0 ? larger(code, 1) : Lanes{});
}

// Of n numbers. Bits of numbers >= 0 are in the order of the numbers, with NaN above all.
INLINE Range range_of(const float* x, int64_t n) {
  IntLanes top{};
  for (int64_t i = 0; i < n; i += kLanes) {
    const IntLanes bits = bits_of(at(x + i)) & INT32_MAX;
    top = bits > top ? bits : top;
  }
  return Range(largest(top));
}

// The dither of kLanes elements, and of those after them.
struct Dither {
  UintLanes offset;

  INLINE explicit Dither(uint32_t start) {
    uint32_t offsets[kLanes];
    for (uint32_t i = 0; i < kLanes; ++i) offsets[i] = i * kPerElement + start;
    offset = bit_cast<UintLanes>(offsets);
  }
  INLINE Lanes next() {
    const Lanes dither = to_float(bit_cast<IntLanes>(offset & kMask)) * kPerOffset;
    offset += static_cast<uint32_t>(kLanes) * kPerElement;
    return dither;
  }
};

// Codes of a group, n elements of it. A loop for each part, again for the chains' sake.
INLINE void encode(const float* ms, const float* vs, int8_t* m_codes, uint8_t* v_codes, float m_inverse,
                   float v_inverse, uint32_t start, int64_t n) {
  alignas(64) float below[kGroup];
  for (int64_t i = 0; i < n; i += kLanes) at(below + i) = code_below(at(vs + i) * v_inverse);
  Dither first(start), second(start);
  for (int64_t i = 0; i < n; i += kAtOnce * kLanes) {
    IntLanes codes[kAtOnce];
    for (int64_t j = 0; j < kAtOnce; ++j) codes[j] = encode_first(at(ms + i + j * kLanes), m_inverse, first.next());
    store(m_codes + i, codes);
  }
  for (int64_t i = 0; i < n; i += kAtOnce * kLanes) {
    IntLanes codes[kAtOnce];
    for (int64_t j = 0; j < kAtOnce; ++j) {
      const int64_t k = i + j * kLanes;
      codes[j] = encode_second(at(vs + k), at(below + k), v_inverse, second.next());
    }
    store(v_codes + i, codes);
  }
}

// For the groups after the next ones: coding, which reads nothing else, is the time to fetch them.
template <class Gradient, bool kOut>
INLINE void prefetch_group(const HostTensor& t, int64_t first) {
  const Gradient* const gradient = static_cast<const Gradient*>(t.gradient);
  constexpr int64_t kLine = 64;
  for (int64_t i = first; i < first + kGroup; i += kLine / 4) __builtin_prefetch(t.weight + i);
  for (int64_t i = first; i < first + kGroup; i += kLine / sizeof(Gradient)) __builtin_prefetch(gradient + i);
  for (int64_t i = first; kOut && i < first + kGroup; i += kLine / 2) __builtin_prefetch(t.out + i, 1);
  for (int64_t i = first; i < first + kGroup; i += kLine) {
    __builtin_prefetch(static_cast<int8_t*>(t.exp_avg) + i);
    __builtin_prefetch(static_cast<uint8_t*>(t.exp_avg_sq) + i);
  }
}

// `count` groups of a row from `group` on, at most kChunk: n elements from `first` on, whole groups but for plain lanes.
template <class Gradient, bool kOut>
INLINE void update_groups(const Constants& c, const HostTensor& t, int64_t group, int64_t count, int64_t first,
                          int64_t n) {
  const Gradient* const gradient = static_cast<const Gradient*>(t.gradient) + first;
  int8_t* const m_codes = static_cast<int8_t*>(t.exp_avg) + first;
  uint8_t* const v_codes = static_cast<uint8_t*>(t.exp_avg_sq) + first;
  float *const m_scales = t.exp_avg_scale + group, *const v_scales = t.exp_avg_sq_scale + group;
  alignas(64) float ms[kChunk * kGroup], vs[kChunk * kGroup];
  float m_inverse[kChunk], v_inverse[kChunk];
  for (int64_t j = 0; j < count; ++j) {
    const int64_t end = std::min(n, (j + 1) * kGroup);
    for (int64_t i = j * kGroup; i < end; i += kLanes) {
      at(ms + i) = decode_first(load(m_codes + i), m_scales[j]);
      at(vs + i) = decode_second(load(v_codes + i), v_scales[j]);
    }
  }
  advance(Wide(c), gradient, ms, vs, t.weight + first, n);
  if constexpr (kOut) narrow(t.weight + first, t.out + first, n);
  for (int64_t j = 0; j < count; ++j) {
    const int64_t size = std::min(kGroup, n - j * kGroup);
    const Range m = range_of(ms + j * kGroup, size), v = range_of(vs + j * kGroup, size);
    m_scales[j] = m.scale;
    v_scales[j] = v.scale;
    m_inverse[j] = m.inverse;
    v_inverse[j] = v.inverse;
  }
  for (int64_t j = 0; j < count; ++j) {
    const int64_t i = j * kGroup;
    const uint32_t start = static_cast<uint32_t>(first + i) * kPerElement + c.dither;
    prefetch_group<Gradient, kOut>(t, first + kChunk * kGroup + i);
    encode(ms + i, vs + i, m_codes + i, v_codes + i, m_inverse[j], v_inverse[j], start, std::min(kGroup, n - i));
  }
}

// Groups [begin, end) of a tensor with 8-bit moments.
template <class Gradient, bool kOut>
INLINE void update_8bit(const Constants& c, const HostTensor& t, int64_t begin, int64_t end) {
  const int64_t per_row = t.groups_per_row();
  for (int64_t group = begin; group < end;) {
    const int64_t row = group / per_row, column = (group - row * per_row) * kGroup, first = row * t.columns + column;
    const int64_t whole = std::min({(t.columns - column) / kGroup, end - group, kChunk});
    if (whole > 0)
      update_groups<Gradient, kOut>(c, t, group, whole, first, whole * kGroup);
    else  // the short group at the end of a row
      plain::update_groups<Gradient, kOut>(c, t, group, 1, first, t.columns - column);
    group += std::max<int64_t>(whole, 1);
  }
}

template <class Gradient, bool kOut>
INLINE void update_as(const Constants& c, const HostTensor& t, int64_t begin, int64_t end) {
  if (t.exp_avg_scale)
    update_8bit<Gradient, kOut>(c, t, begin, end);
  else
    update_fp32<Gradient, kOut>(c, t, begin * kGroup, std::min(end * kGroup, t.elements));
}

void update(const Constants& c, const HostTensor& t, int64_t begin, int64_t end) {
  if (t.bf16_gradient && t.out)
    update_as<uint16_t, true>(c, t, begin, end);
  else if (t.bf16_gradient)
    update_as<uint16_t, false>(c, t, begin, end);
  else if (t.out)
    update_as<float, true>(c, t, begin, end);
  else
    update_as<float, false>(c, t, begin, end);
}
