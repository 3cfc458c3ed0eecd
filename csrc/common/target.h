// Marks a function that host and device code share.
#pragma once

#if defined(__CUDACC__)
#define FASTGAN_SHARED __host__ __device__ __forceinline__
#else
#define FASTGAN_SHARED inline __attribute__((always_inline))
#endif
