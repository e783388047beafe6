// Included by cross_entropy.cpp once for each instruction set, after lanes_kernel.h. A row of a real vocabulary (600 kB)
// stays in the second-level cache, so that the three passes over it cost one trip to memory.

INLINE float largest_of(const float* z, int64_t columns) {
  float largest = z[0];
  int64_t j = 0;
  if (columns >= kLanes) {
    Lanes most = lanes(z);
    for (; j + kLanes <= columns; j += kLanes) most = lanes(z + j) > most ? lanes(z + j) : most;
    for (int64_t i = 0; i < kLanes; ++i) largest = std::max(largest, most[i]);
  }
  for (; j < columns; ++j) largest = std::max(largest, z[j]);
  return largest;
}

// z becomes exp(z - largest); returns the sum. Lanes add up 64 numbers each before a double takes over: one long fp32
// sum over 150,000 exponentials would lose three digits.
INLINE double exponentials(float* z, int64_t columns, float largest) {
  double total = 0.0;
  int64_t j = 0;
  while (j + kLanes <= columns) {
    const int64_t end = std::min(columns - columns % kLanes, j + 64 * kLanes);
    Lanes sum = {};
    for (; j < end; j += kLanes) sum += lanes(z + j) = exp_lanes(lanes(z + j) - largest);
    for (int64_t i = 0; i < kLanes; ++i) total += sum[i];
  }
  float tail[kLanes] = {};
  const int64_t rest = columns - j;
  std::copy_n(z + j, rest, tail);
  lanes(tail) = exp_lanes(lanes(tail) - largest);
  std::copy_n(tail, rest, z + j);
  for (int64_t i = 0; i < rest; ++i) total += tail[i];
  return total;
}

RowLoss row(float* z, int64_t columns, int64_t label, float coefficient, bool gradient) {
  const float largest = largest_of(z, columns), at_label = z[label];
  const bool first = at_label == largest && std::find(z, z + label, largest) == z + label;
  const double total = exponentials(z, columns, largest), log_total = std::log(total);
  if (gradient) {
    const float probability_at_label = static_cast<float>(z[label] / total);
    const float factor = static_cast<float>(coefficient / total);
    for (int64_t j = 0; j < columns; ++j) z[j] *= factor;
    z[label] = coefficient * (probability_at_label - 1.0f);
  }
  return {static_cast<float>(log_total - (static_cast<double>(at_label) - largest)), first ? 1.0f : 0.0f,
          static_cast<float>(log_total + largest)};
}
