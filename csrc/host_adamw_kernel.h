// AdamW of one tensor: formulas and order of operations of kernels/adamw.py, codes of kernels/quantize.py.
// Included by host_adamw.cpp once for each instruction set, in the namespace of its lanes; so no include guard here.

INLINE Lanes& at(float* p) { return *reinterpret_cast<Lanes*>(p); }
INLINE IntLanes bits_of(Lanes x) { return bit_cast<IntLanes>(x); }
INLINE Lanes of_bits(IntLanes x) { return bit_cast<Lanes>(x); }

INLINE Lanes load_gradient(const float* p) { return *reinterpret_cast<const Lanes*>(p); }
INLINE Lanes load_gradient(const uint16_t* bf16) { return of_bits(load(bf16) << 16); }

// To bf16: nearest, ties to even. NaN becomes the canonical one, since the nearest pattern of some NaNs is infinity's.
INLINE IntLanes narrow(Lanes x) {
  const UintLanes bits = bit_cast<UintLanes>(x);
  const UintLanes rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  return x == x ? bit_cast<IntLanes>(rounded) : IntLanes{} + 0x7FC0;
}

INLINE void advance(const Constants& c, Lanes g, Lanes& m, Lanes& v, Lanes& w) {
  g = g * c.scale;
  m = m + (g - m) * c.rest1;
  v = v + (g * g - v) * c.rest2;
  w = w - (w * c.decay + m / (root(v) * c.root + c.eps) * c.move);
}

// Elements [begin, end) of a tensor with fp32 moments.
template <class Gradient, bool kOut>
INLINE void update_fp32(const Constants& c, const HostTensor& t, int64_t begin, int64_t end) {
  float* const exp_avg = static_cast<float*>(t.exp_avg);
  float* const exp_avg_sq = static_cast<float*>(t.exp_avg_sq);
  const Gradient* const gradient = static_cast<const Gradient*>(t.gradient);
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) {
    Lanes m = at(exp_avg + i), v = at(exp_avg_sq + i), w = at(t.weight + i);
    advance(c, load_gradient(gradient + i), m, v, w);
    at(exp_avg + i) = m;
    at(exp_avg_sq + i) = v;
    at(t.weight + i) = w;
    if constexpr (kOut) store(t.out + i, narrow(w));
  }
  if constexpr (kLanes > 1) plain::update_fp32<Gradient, kOut>(c, t, i, end);
}

// The moment of a code; unit: kFirst or kSecond.
INLINE Lanes decode(IntLanes code, float unit, float scale) {
  const IntLanes size = code < 0 ? -code : code;
  const IntLanes sign = code & INT32_MIN;
  return of_bits(bits_of(of_bits(size << 20) * (1 / unit)) | sign) * scale;
}

INLINE UintLanes relative(Lanes x, float inverse, float unit) {
  return bit_cast<UintLanes>(of_bits(bits_of(x) & INT32_MAX) * inverse * unit);
}

INLINE IntLanes encode_first(Lanes m, float inverse) {
  const IntLanes code = bit_cast<IntLanes>(relative(m, inverse, kFirst) + 0x80000) >> 20;
  const IntLanes size = code < 127 ? code : IntLanes{} + 127;
  return m < 0 ? -size : size;
}

INLINE IntLanes encode_second(Lanes v, float inverse, UintLanes offset) {
  IntLanes code = bit_cast<IntLanes>(relative(v, inverse, kSecond) + offset) >> 20;
  code = code > 1 ? code : IntLanes{} + 1;
  code = code < 255 ? code : IntLanes{} + 255;
  return v > 0 ? code : IntLanes{};
}

// A group of n elements from `first` on. It is decoded, updated and coded while it is in the first cache.
template <class Gradient, bool kOut>
INLINE void update_group(const Constants& c, const HostTensor& t, int64_t group, int64_t first, int64_t n,
                         uint32_t dither) {
  const Gradient* const gradient = static_cast<const Gradient*>(t.gradient) + first;
  int8_t* const m_codes = static_cast<int8_t*>(t.exp_avg) + first;
  uint8_t* const v_codes = static_cast<uint8_t*>(t.exp_avg_sq) + first;
  const float m_scale = t.exp_avg_scale[group], v_scale = t.exp_avg_sq_scale[group];
  alignas(64) float ms[kGroup], vs[kGroup];
  IntLanes m_top{}, v_top{};  // bits of numbers >= 0 are in the order of the numbers, NaN's above all
  for (int64_t i = 0; i < n; i += kLanes) {
    Lanes m = decode(load(m_codes + i), kFirst, m_scale), v = decode(load(v_codes + i), kSecond, v_scale);
    Lanes w = at(t.weight + first + i);
    advance(c, load_gradient(gradient + i), m, v, w);
    at(t.weight + first + i) = w;
    if constexpr (kOut) store(t.out + first + i, narrow(w));
    const IntLanes m_bits = bits_of(m) & INT32_MAX, v_bits = bits_of(v) & INT32_MAX;
    m_top = m_bits > m_top ? m_bits : m_top;
    v_top = v_bits > v_top ? v_bits : v_top;
    at(ms + i) = m;
    at(vs + i) = v;
  }
  const Range m_range(largest(m_top)), v_range(largest(v_top));
  t.exp_avg_scale[group] = m_range.scale;
  t.exp_avg_sq_scale[group] = v_range.scale;
  uint32_t offsets[kLanes];
  for (uint32_t i = 0; i < kLanes; ++i) offsets[i] = (static_cast<uint32_t>(first) + i) * kPerElement + dither;
  UintLanes offset = bit_cast<UintLanes>(offsets);
  for (int64_t i = 0; i < n; i += kLanes) {
    store(m_codes + i, encode_first(at(ms + i), m_range.inverse));
    store(v_codes + i, encode_second(at(vs + i), v_range.inverse, offset & kMask));
    offset += static_cast<uint32_t>(kLanes) * kPerElement;
  }
}

// Groups [begin, end) of a tensor with 8-bit moments.
template <class Gradient, bool kOut>
INLINE void update_8bit(const Constants& c, const HostTensor& t, int64_t begin, int64_t end) {
  for (int64_t group = begin; group < end; ++group) {
    const int64_t row = group / t.groups_per_row(), column = (group - row * t.groups_per_row()) * kGroup;
    const int64_t first = row * t.columns + column;
    if (t.columns - column >= kGroup)
      update_group<Gradient, kOut>(c, t, group, first, kGroup, c.dither);
    else  // the short group at the end of a row
      plain::update_group<Gradient, kOut>(c, t, group, first, t.columns - column, c.dither);
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
