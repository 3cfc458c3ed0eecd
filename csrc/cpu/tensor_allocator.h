// torch's large CPU tensors in an arena of ours.
#pragma once

#include "arena.h"

namespace fastgan::cpu {

// From now on torch allocates CPU tensors of 64 KiB to 1 GiB in an arena, in all of the process, and
// the kernels borrow large scratch memory there.
// Those allocated before go back to where they came from. False, and nothing is changed, if this
// process has another allocator than torch's own, or if addresses are limited or refused.
bool allocate_tensors();

// All 0 if there is no arena.
Arena::Usage tensor_arena_usage();

}  // namespace fastgan::cpu
