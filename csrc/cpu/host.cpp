// The Python module of the extension: the host side alone (levels, features, threads, build).
// The operators are registered with torch's dispatcher by operators.cpp in the same library.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/ops.h>

#include "levels.h"

PYBIND11_MODULE(_fastgan_cpu, module) {
  namespace cpu = fastgan::cpu;
  module.doc() = "fastgan's native CPU kernels: what the processor has and what is in use.";
  module.def("levels", &cpu::usable_levels, "Usable instruction-set levels, best first.");
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
  module.def("threads", [] { return torch::stable::get_num_threads(); }, "torch's CPU threads.");
  module.def(
      "build_info",
      [] {
        pybind11::dict info;
        info["compiler"] = __VERSION__;
        info["cxx_standard"] = __cplusplus;
        info["torch_target_version"] = TORCH_FEATURE_VERSION;
        return info;
      },
      "How the library was compiled.");
}
