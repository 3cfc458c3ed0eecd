// What an instruction-set level is made of, for people: `fastgan doctor` shows it.
#pragma once

namespace fastgan::cpu {

// The float32 sums that a product keeps in registers at a time; 0 x 0 where the level has no
// instruction for products of that type and works in float32.
struct RegisterTile {
  int rows, columns;
};

struct Description {
  int vector_bits;
  RegisterTile float32, bfloat16;  // by the type of the factors
};

}  // namespace fastgan::cpu
