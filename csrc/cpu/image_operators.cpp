// The batch of stored images as an operator of torch's dispatcher, beside those of operators.cpp.
#include <torch/csrc/stable/library.h>

#include "levels.h"
#include "tensors.h"

namespace {

using namespace fastgan;
using namespace fastgan::cpu;

void check_dense(const Tensor& tensor, const char* name, int64_t dimensions) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.dim() == dimensions && tensor.is_contiguous(), name,
                  " must be a contiguous tensor of ", dimensions, " dimensions on the CPU");
}

// Returns the place of the first index that no image has, and then writes nothing; or -1.
int64_t image_batch(Tensor images, Tensor indices, std::optional<Tensor> flips, Tensor batch) {
  check_dense(images, "images", 4);
  check_dense(indices, "indices", 1);
  check_dense(batch, "batch", 4);
  STD_TORCH_CHECK(images.scalar_type() == ScalarType::Byte, "images must be uint8");
  STD_TORCH_CHECK(indices.scalar_type() == ScalarType::Long, "indices must be int64");
  STD_TORCH_CHECK(batch.size(0) == indices.numel(), "batch has ", batch.size(0), " images, not ",
                  indices.numel());
  for (int64_t dimension = 1; dimension < 4; ++dimension) {
    STD_TORCH_CHECK(batch.size(dimension) == images.size(dimension), "dimension ", dimension,
                    " of batch is ", batch.size(dimension), ", not ", images.size(dimension));
  }
  ImageBatch call{};
  call.type = data_type(batch);
  call.count = indices.numel();
  call.height = images.size(1);
  call.width = images.size(2);
  call.channels = images.size(3);
  call.images = static_cast<const uint8_t*>(images.const_data_ptr());
  call.indices = static_cast<const int64_t*>(indices.const_data_ptr());
  call.batch = batch.mutable_data_ptr();
  if (flips) {
    check_dense(*flips, "flips", 1);
    STD_TORCH_CHECK(flips->scalar_type() == ScalarType::Bool && flips->numel() == call.count,
                    "flips must be ", call.count, " bools");
    call.flips = static_cast<const uint8_t*>(flips->const_data_ptr());
  }
  const int64_t stored = images.size(0);
  for (int64_t place = 0; place < call.count; ++place) {
    if (call.indices[place] < 0 || call.indices[place] >= stored) return place;
  }
  kernels().image_batch(call);
  return -1;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastgan_cpu, library) {
  library.def(
      "image_batch(Tensor images, Tensor indices, Tensor? flips, Tensor(a!) batch) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(fastgan_cpu, CPU, library) {
  library.impl("image_batch", TORCH_BOX(&image_batch));
}
