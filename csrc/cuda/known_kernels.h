// Every kernel that something launches: filled while the library is loaded, read by attributes.cpp.
#pragma once

#include <vector>

namespace fastgan::cuda {

inline std::vector<const void*>& known_kernels() {
  static std::vector<const void*> kernels;
  return kernels;
}

// Naming `listed` for a kernel puts it on the list, once, whether it is ever launched or not.
template <auto kernel>
struct Known {
  static inline const bool listed = [] {
    known_kernels().push_back(reinterpret_cast<const void*>(kernel));
    return true;
  }();
};

}  // namespace fastgan::cuda
