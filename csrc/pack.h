// The document packer of the step plan: pack.cpp has the algorithm, pack_module.cpp the Python side.
#pragma once

#include <cstdint>

namespace skytrain {

// Divides the documents of one optimizer step among ranks, in the fewest micro-batches found.
//   lengths [n]  tokens of each document, 1..max_tokens
//   costs [n]    time of each document, >= 0, in any unit; never falls as length grows; the sum fits an int64
//   slots [n]    out: micro-batch * ranks + rank, where a rank runs at most max_tokens tokens in a micro-batch
// Depends on nothing but its arguments: every rank, on any machine, finds the same slots.
void pack_step(const int64_t* lengths, const int64_t* costs, int64_t n, int64_t ranks, int64_t max_tokens,
               int64_t* slots);

}  // namespace skytrain
