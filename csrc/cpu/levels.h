// Which instruction-set levels are compiled in, which of them this processor has, which is used.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "description.h"
#include "kernels.h"

namespace fastgan::cpu {

// Best first: the levels that this processor (and its kernel) can run.
std::vector<std::string> usable_levels();

struct CompiledLevel {
  const char* name;
  bool usable;  // by this processor
  Description description;
};

// Best first: the levels that are compiled in.
std::vector<CompiledLevel> compiled_levels();

// The kernels in use: the best usable level, or the one that was forced.
const Kernels& kernels();

// Forces a level by name; an empty name goes back to the best one. False if it is not usable.
bool force_level(const std::string& name);

// Every feature that the levels ask for, and whether the processor has it.
std::vector<std::pair<std::string, bool>> processor_features();

}  // namespace fastgan::cpu
