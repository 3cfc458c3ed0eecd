// The Python module of the extension: the host side alone (levels, features, threads, build).
// The operators are registered with torch's dispatcher by operators.cpp and convolution_operators.cpp
// in the same library.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/ops.h>

#include "kernels.h"
#include "levels.h"
#include "tensor_allocator.h"

#if defined(__clang__)
#define FASTGAN_COMPILER __VERSION__
#else
#define FASTGAN_COMPILER "GCC " __VERSION__
#endif

namespace {

namespace cpu = fastgan::cpu;

// name, usable, vector_bits, and by the dtypes that it multiplies natively its (rows, columns).
pybind11::dict described(const cpu::CompiledLevel& level) {
  pybind11::dict tiles;
  auto add = [&](const char* dtype, const cpu::RegisterTile& tile) {
    if (tile.rows) tiles[dtype] = pybind11::make_tuple(tile.rows, tile.columns);
  };
  add("float32", level.description.float32);
  add("bfloat16", level.description.bfloat16);
  pybind11::dict result;
  result["name"] = level.name;
  result["usable"] = level.usable;
  result["vector_bits"] = level.description.vector_bits;
  result["register_tiles"] = tiles;
  return result;
}

}  // namespace

PYBIND11_MODULE(_fastgan_cpu, module) {
  module.doc() = "fastgan's native CPU kernels: what the processor has and what is in use.";
  module.def("levels", &cpu::usable_levels, "Usable instruction-set levels, best first.");
  module.def(
      "compiled_levels",
      [] {
        pybind11::list levels;
        for (const cpu::CompiledLevel& level : cpu::compiled_levels()) {
          levels.append(described(level));
        }
        return levels;
      },
      "The levels compiled in, best first: their vectors, and register tiles by multiplied dtype.");
  module.def("level", [] { return std::string(cpu::kernels().name); }, "The level in use.");
  module.def("force_level", &cpu::force_level, pybind11::arg("name"),
             "Force a level; an empty name goes back to the best. False if it is not usable.");
  module.def(
      "features",
      [] {
        pybind11::dict features;
        for (const auto& [name, present] : cpu::processor_features()) {
          features[pybind11::str(name)] = present;
        }
        return features;
      },
      "Processor features that the levels ask for.");
  module.def("scratch_bytes", &cpu::scratch_bytes,
             "Bytes of scratch memory that the kernels' threads keep between calls.");
  module.def("threads", [] { return torch::stable::get_num_threads(); }, "torch's CPU threads.");
  module.def("allocate_tensors", &cpu::allocate_tensors,
             "Allocate torch's large CPU tensors in an arena from now on. False if that cannot be.");
  module.def(
      "arena",
      [] {
        const cpu::Arena::Usage usage = cpu::tensor_arena_usage();
        pybind11::dict result;
        result["reserved"] = usage.reserved;
        result["in_use"] = usage.in_use;
        result["most_in_use"] = usage.most_in_use;
        result["backed"] = usage.backed;
        result["highest"] = usage.highest;
        result["blocks"] = usage.blocks;
        result["free_blocks"] = usage.free_blocks;
        return result;
      },
      "The tensors' arena, in bytes and blocks (arena.h); all 0 if there is none.");
  module.def(
      "build_info",
      [] {
        pybind11::dict info;
        info["compiler"] = FASTGAN_COMPILER;
        info["cxx_standard"] = __cplusplus;
        info["torch_target_version"] = TORCH_FEATURE_VERSION;
        return info;
      },
      "How the library was compiled.");
}
