#include "levels.h"

#include <atomic>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastgan::cpu {

namespace portable {
extern const Kernels kernels;
extern const Description description;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kernels;
extern const Description description;
}
namespace avx512 {
extern const Kernels kernels;
extern const Description description;
}
namespace avx512_bf16 {
extern const Kernels kernels;
extern const Description description;
}
namespace amx_bf16 {
extern const Kernels kernels;
extern const Description description;
}
#endif

namespace {

#if defined(__x86_64__)
bool extended_feature(int subleaf, int register_index, int bit) {
  unsigned values[4];
  if (!__get_cpuid_count(7, subleaf, &values[0], &values[1], &values[2], &values[3])) return false;
  return values[register_index] >> bit & 1;
}

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

bool has_avx512_bf16() { return has_avx512() && extended_feature(1, 0, 5); }

// Tiles need the kernel's permission, asked for once a process (Linux 5.16 and later).
bool has_amx_bf16() {
  static const bool allowed = [] {
    if (!has_avx512_bf16() || !extended_feature(0, 3, 22) || !extended_feature(0, 3, 24)) {
      return false;
    }
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return allowed;
}
#endif

struct Level {
  const Kernels* kernels;
  const Description* description;
  bool (*usable)();
};

const Level kLevels[] = {
#if defined(__x86_64__)
    {&amx_bf16::kernels, &amx_bf16::description, has_amx_bf16},
    {&avx512_bf16::kernels, &avx512_bf16::description, has_avx512_bf16},
    {&avx512::kernels, &avx512::description, has_avx512},
    {&avx2::kernels, &avx2::description, has_avx2},
#endif
    {&portable::kernels, &portable::description, [] { return true; }},
};

const Kernels* best() {
  for (const Level& level : kLevels) {
    if (level.usable()) return level.kernels;
  }
  return &portable::kernels;
}

std::atomic<const Kernels*> forced{nullptr};

}  // namespace

std::vector<std::string> usable_levels() {
  std::vector<std::string> names;
  for (const Level& level : kLevels) {
    if (level.usable()) names.emplace_back(level.kernels->name);
  }
  return names;
}

std::vector<CompiledLevel> compiled_levels() {
  std::vector<CompiledLevel> found;
  for (const Level& level : kLevels) {
    found.push_back({level.kernels->name, level.usable(), *level.description});
  }
  return found;
}

const Kernels& kernels() {
  static const Kernels* const automatic = best();
  const Kernels* chosen = forced.load(std::memory_order_relaxed);
  return chosen ? *chosen : *automatic;
}

bool force_level(const std::string& name) {
  if (name.empty()) {
    forced = nullptr;
    return true;
  }
  for (const Level& level : kLevels) {
    if (name == level.kernels->name && level.usable()) {
      forced = level.kernels;
      return true;
    }
  }
  return false;
}

std::vector<std::pair<std::string, bool>> processor_features() {
#if defined(__x86_64__)
  return {{"avx2", __builtin_cpu_supports("avx2")},
          {"fma", __builtin_cpu_supports("fma")},
          {"f16c", __builtin_cpu_supports("f16c")},
          {"avx512f", __builtin_cpu_supports("avx512f")},
          {"avx512bw", __builtin_cpu_supports("avx512bw")},
          {"avx512vl", __builtin_cpu_supports("avx512vl")},
          {"avx512dq", __builtin_cpu_supports("avx512dq")},
          {"avx512_bf16", extended_feature(1, 0, 5)},
          {"amx_tile", extended_feature(0, 3, 24)},
          {"amx_bf16", extended_feature(0, 3, 22)}};
#else
  return {};
#endif
}

}  // namespace fastgan::cpu
