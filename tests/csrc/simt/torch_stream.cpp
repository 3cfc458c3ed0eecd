// What libtorch_cuda would answer, for the operators of csrc/cuda on a torch without CUDA.
#include <cstdint>

extern "C" int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
