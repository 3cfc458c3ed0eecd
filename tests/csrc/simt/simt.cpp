// Runs CUDA kernels on the host: every thread of a block is a fiber.
//
// A fiber runs until it waits at a barrier; which one runs next is drawn from a seed, and so is the
// order of the blocks. In half of the launches any thread may be next; in the others each warp and
// each of its lanes has a rank, so that some warps run as far ahead of the rest as they can. Where
// a barrier is missing, a fiber reads what nobody has written yet (shared memory starts as NaN) or
// overwrites what others have still to read. Threads that can never go on, memory beyond a buffer
// and shared memory beyond the block's are errors of the launch, told by simt_error().
//
// Fibers are entered by setcontext, once, and switched by _longjmp, which costs nanoseconds.
#include "cuda_runtime.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace simt {
namespace {

constexpr unsigned kLanes = 32;
constexpr size_t kPage = 4096, kStack = 64 * 1024;
constexpr size_t kSharedLimit = 227 * 1024, kSharedMargin = 4096;

}  // namespace
}  // namespace simt

// What csrc/cuda/launch.cuh declares as shared; behind it a margin that no thread may write.
namespace fastgan::cuda {
__attribute__((aligned(128))) unsigned char block_memory[simt::kSharedLimit + simt::kSharedMargin];
}
using fastgan::cuda::block_memory;

namespace simt {
namespace {

enum class Wait { none, block, warp, grid, done };

struct Fiber {
  ucontext_t entry;
  jmp_buf resume;
  bool started = false;
  Wait wait = Wait::none;
  uint3 index;
  unsigned number;     // in the block
  uint64_t rank;       // the highest runs first, where ranks count
  uint32_t mask;       // lanes that are waited for
  uint64_t given;      // to the other lanes
  unsigned source;     // lane whose value is wanted
  Exchanged received;
};

struct Block {
  uint3 index;
  std::vector<Fiber*> fibers;
  std::vector<unsigned> ready;
  size_t at_barrier = 0, at_grid = 0, done = 0;
  std::vector<unsigned char> shared;  // while other blocks run
};

std::vector<std::unique_ptr<Fiber>> pool;
Fiber* current;
Block* running;
const std::function<void()>* body;
jmp_buf scheduler;
uint64_t random_state = 1;
bool ranked;  // this launch goes by ranks
bool only_last;  // of a grid's blocks only the last one runs
size_t most_shared;
std::string failure;
volatile sig_atomic_t faulted;
void* volatile fault_address;

uint64_t draw(uint64_t bound) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return (random_state >> 11) % bound;
}

void suspend(Wait reason) {
  current->wait = reason;
  if (!_setjmp(current->resume)) _longjmp(scheduler, 1);
}

void fiber_main() {
  for (;;) {
    (*body)();
    suspend(Wait::done);
  }
}

Fiber* fiber_at(size_t position) {
  while (pool.size() <= position) {
    auto fiber = std::make_unique<Fiber>();
    auto* memory = static_cast<unsigned char*>(mmap(nullptr, kStack + kPage, PROT_READ | PROT_WRITE,
                                                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(memory, kPage, PROT_NONE);  // an overflowing stack faults
    getcontext(&fiber->entry);
    fiber->entry.uc_stack = {memory + kPage, 0, kStack};
    fiber->entry.uc_link = nullptr;
    pool.push_back(std::move(fiber));
  }
  Fiber* fiber = pool[position].get();
  if (!fiber->started) makecontext(&fiber->entry, fiber_main, 0);
  return fiber;
}

// Runs the fiber until it waits.
__attribute__((noinline)) void resume(Fiber* fiber) {
  current = fiber;
  threadIdx = fiber->index;
  if (_setjmp(scheduler)) return;
  if (fiber->started) _longjmp(fiber->resume, 1);
  fiber->started = true;
  setcontext(&fiber->entry);
}

void release(Block& block, Wait reason) {
  for (Fiber* fiber : block.fibers) {
    if (fiber->wait != reason) continue;
    fiber->wait = Wait::none;
    block.ready.push_back(fiber->number);
  }
}

// Lets the lanes of the mask go on if all of them have come.
void try_exchange(Block& block, const Fiber& last) {
  const unsigned first = last.number / kLanes * kLanes;
  auto participant = [&](unsigned lane) -> Fiber* {
    return first + lane < block.fibers.size() ? block.fibers[first + lane] : nullptr;
  };
  uint32_t nonzero = 0;
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if (!(last.mask >> lane & 1)) continue;
    Fiber* fiber = participant(lane);
    if (!fiber || fiber->wait != Wait::warp || fiber->mask != last.mask) return;
    nonzero |= static_cast<uint32_t>(fiber->given != 0) << lane;
  }
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if (!(last.mask >> lane & 1)) continue;
    Fiber* fiber = participant(lane);
    Fiber* source = participant(fiber->source);
    const bool given = source && (last.mask >> fiber->source & 1);
    fiber->received = {given ? source->given : ~uint64_t{0}, nonzero};
    fiber->wait = Wait::none;
    block.ready.push_back(fiber->number);
  }
}

// Runs the block's threads until all of them wait for other blocks or are done.
void run_block(Block& block) {
  running = &block;
  blockIdx = block.index;
  while (!block.ready.empty()) {
    size_t next = draw(block.ready.size());
    for (size_t i = 0; ranked && i < block.ready.size(); ++i) {
      auto rank = [&](size_t at) { return block.fibers[block.ready[at]]->rank; };
      if (rank(i) > rank(next)) next = i;
    }
    std::swap(block.ready[next], block.ready.back());
    Fiber* fiber = block.fibers[block.ready.back()];
    block.ready.pop_back();
    resume(fiber);
    if (faulted) return;
    if (fiber->wait == Wait::warp) try_exchange(block, *fiber);
    block.at_barrier += fiber->wait == Wait::block;
    block.at_grid += fiber->wait == Wait::grid;
    block.done += fiber->wait == Wait::done;
    if (block.at_barrier == block.fibers.size()) {
      block.at_barrier = 0;
      release(block, Wait::block);
    }
  }
}

Block make_block(unsigned linear, size_t first_fiber) {
  Block block;
  block.index = {linear % gridDim.x, linear / gridDim.x % gridDim.y,
                 linear / gridDim.x / gridDim.y};
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  constexpr uint64_t kRanks = 1u << 20;
  uint64_t warp_rank = 0;
  for (unsigned number = 0; number < threads; ++number) {
    if (number % kLanes == 0) warp_rank = draw(kRanks) * kRanks;
    Fiber* fiber = fiber_at(first_fiber + number);
    fiber->wait = Wait::none;
    fiber->number = number;
    fiber->rank = warp_rank + draw(kRanks);
    fiber->index = {number % blockDim.x, number / blockDim.x % blockDim.y,
                    number / blockDim.x / blockDim.y};
    block.fibers.push_back(fiber);
    block.ready.push_back(number);
  }
  return block;
}

void fail_stuck(const Block& block) {
  const size_t threads = block.fibers.size();
  size_t at_warp = 0;
  for (const Fiber* fiber : block.fibers) at_warp += fiber->wait == Wait::warp;
  failure = "threads wait for ever: of " + std::to_string(threads) + ", " +
            std::to_string(block.at_barrier) + " at __syncthreads, " + std::to_string(at_warp) +
            " for their warp, " + std::to_string(block.at_grid) + " for the grid, " +
            std::to_string(block.done) + " are done";
}

bool margin_untouched(size_t shared_bytes) {
  return std::all_of(block_memory + shared_bytes, block_memory + shared_bytes + kSharedMargin,
                     [](unsigned char byte) { return byte == 0xff; });
}

// Runs one block, or blocks that are alive together, to the end.
void run_together(std::vector<Block>& blocks, size_t shared_bytes) {
  memset(block_memory, 0xff, shared_bytes + kSharedMargin);  // NaN in every floating type
  for (Block& block : blocks) block.shared.assign(blocks.size() > 1 ? shared_bytes : 0, 0xff);
  std::vector<size_t> order(blocks.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  for (;;) {
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[draw(i)]);
    size_t at_grid = 0, done = 0;
    for (size_t position : order) {
      Block& block = blocks[position];
      if (!block.shared.empty()) memcpy(block_memory, block.shared.data(), shared_bytes);
      run_block(block);
      if (faulted) return;
      if (!block.shared.empty()) memcpy(block.shared.data(), block_memory, shared_bytes);
      if (block.at_grid + block.done != block.fibers.size()) return fail_stuck(block);
      at_grid += block.at_grid;
      done += block.done;
    }
    if (at_grid == 0) return;
    if (done != 0) {
      failure = "threads wait for a grid in which others are done";
      return;
    }
    for (Block& block : blocks) {
      block.at_grid = 0;
      release(block, Wait::grid);
    }
  }
}

void on_fault(int, siginfo_t* information, void*) {
  faulted = 1;
  fault_address = information->si_addr;
  _longjmp(scheduler, 1);
}

}  // namespace

void wait_for_block() { suspend(Wait::block); }

void wait_for_grid() { suspend(Wait::grid); }

unsigned lane() { return current->number % kLanes; }

Exchanged exchange(uint32_t mask, uint64_t value, unsigned source) {
  current->mask = mask;
  current->given = value;
  current->source = source;
  suspend(Wait::warp);
  return current->received;
}

cudaError_t launch(dim3 grid, dim3 block, size_t shared_bytes, bool together,
                   const std::function<void()>& kernel) {
  const size_t threads = size_t{block.x} * block.y * block.z;
  const size_t count = size_t{grid.x} * grid.y * grid.z;
  if (!failure.empty() || threads == 0 || threads > 1024 || count == 0 || grid.y > 65535 ||
      grid.z > 65535 || shared_bytes > kSharedLimit) {
    if (failure.empty()) failure = "a launch of an impossible size";
    return cudaErrorInvalidConfiguration;
  }
  most_shared = std::max(most_shared, shared_bytes);
  gridDim = grid;
  blockDim = block;
  body = &kernel;
  faulted = 0;
  ranked = draw(2) != 0;
  struct sigaction action = {}, previous_segv, previous_bus;
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &action, &previous_segv);
  sigaction(SIGBUS, &action, &previous_bus);
  std::vector<unsigned> order(only_last ? 1 : count);
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<unsigned>(count - 1 - i);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[draw(i)]);
  for (size_t next = 0; next < order.size() && failure.empty();) {
    std::vector<Block> blocks;
    do {
      blocks.push_back(make_block(order[next], blocks.size() * threads));
      ++next;
    } while (together && next < order.size());
    run_together(blocks, shared_bytes);
    if (faulted) failure = "a thread touched memory outside of its buffers";
    if (!margin_untouched(shared_bytes)) failure = "a thread wrote beyond its shared memory";
  }
  sigaction(SIGSEGV, &previous_segv, nullptr);
  sigaction(SIGBUS, &previous_bus, nullptr);
  if (failure.empty()) return cudaSuccess;
  for (auto& fiber : pool) fiber->started = false;  // some are in the middle of the kernel
  return cudaErrorLaunchFailure;
}

}  // namespace simt

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? simt::failure.c_str() : "an invalid configuration";
}

extern "C" {

void simt_seed(uint64_t seed) { simt::random_state = seed * 0x9e3779b97f4a7c15u | 1; }

// With it, tensors of billions of elements are tested where their indices are largest.
void simt_only_last_block(bool only) { simt::only_last = only; }

// The most shared memory that a block has asked for since the last question.
size_t simt_most_shared() { return std::exchange(simt::most_shared, 0); }

// Why the last launch failed, or ""; kernels can be launched again afterwards.
const char* simt_error() {
  static std::string told;
  told = std::exchange(simt::failure, "");
  return told.c_str();
}

// Memory filled with NaN that ends where the next page faults; before it, also behind a fault, at
// most a page of NaN that must stay so.
void* simt_allocate(size_t bytes) {
  const size_t pages = (bytes + simt::kPage - 1) / simt::kPage * simt::kPage;
  auto* memory = static_cast<unsigned char*>(mmap(nullptr, pages + 2 * simt::kPage, PROT_NONE,
                                                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (memory == MAP_FAILED) return nullptr;
  mprotect(memory + simt::kPage, pages, PROT_READ | PROT_WRITE);
  memset(memory + simt::kPage, 0xff, pages);
  return memory + simt::kPage + pages - bytes;
}

// Zeros that take no memory until they are touched, between two faults: whole pages.
void* simt_allocate_sparse(size_t bytes) {
  auto* memory = static_cast<unsigned char*>(mmap(nullptr, bytes + 2 * simt::kPage, PROT_NONE,
                                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
                                                  0));
  if (memory == MAP_FAILED || bytes % simt::kPage != 0) return nullptr;
  mprotect(memory + simt::kPage, bytes, PROT_READ | PROT_WRITE);
  return memory + simt::kPage;
}

// Returns false if something was written before the buffer.
bool simt_release(void* buffer, size_t bytes) {
  const size_t pages = (bytes + simt::kPage - 1) / simt::kPage * simt::kPage;
  auto* begin = static_cast<unsigned char*>(buffer) + bytes - pages;
  const bool untouched = std::all_of(begin, static_cast<unsigned char*>(buffer),
                                     [](unsigned char byte) { return byte == 0xff; });
  munmap(begin - simt::kPage, pages + 2 * simt::kPage);
  return untouched;
}
}
