// Draws allocations from an arena and compares it with a plain model of best fit, from one thread and
// from many, and in the children of a process that forks while its threads allocate.
//
// Usage: arena_harness CHECK SEED, where CHECK is model, threads, forks or refusals. Exit 0 if right.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../../../csrc/cpu/arena.h"

namespace {

using fastgan::cpu::Arena;

constexpr size_t kArena = size_t{64} << 20;

#define CHECK(condition)                                                          \
  do {                                                                            \
    if (!(condition)) {                                                           \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      std::_Exit(1);                                                              \
    }                                                                             \
  } while (false)

size_t pages(size_t bytes) { return (bytes + Arena::kPage - 1) / Arena::kPage * Arena::kPage; }

// Sizes as a network's: many repeat, few are large.
size_t draw_size(std::mt19937_64& generator) {
  const size_t power = size_t{1} << std::uniform_int_distribution<int>(12, 22)(generator);
  const bool repeated = generator() % 2;
  return repeated ? power : std::uniform_int_distribution<size_t>(1, power)(generator);
}

// A block that is held: every eighth of its bytes says whose it is.
struct Held {
  unsigned char* data;
  size_t bytes;
  unsigned char mark;

  Held(void* block, size_t size, unsigned char value)
      : data(static_cast<unsigned char*>(block)), bytes(size), mark(value) {
    for (size_t i = 0; i < bytes; i += 8) data[i] = mark;
    data[bytes - 1] = mark;
  }
  bool intact() const {
    for (size_t i = 0; i < bytes; i += 8) {
      if (data[i] != mark) return false;
    }
    return data[bytes - 1] == mark;
  }
};

// Where best fit puts `size` bytes, the lowest on ties: the arena's end if nowhere.
size_t best_fit(const std::map<size_t, size_t>& held, size_t size) {
  size_t best = kArena, smallest = SIZE_MAX, end = 0;
  auto consider = [&](size_t next) {
    if (next - end >= size && next - end < smallest) best = end, smallest = next - end;
  };
  for (const auto& [offset, bytes] : held) {
    consider(offset);
    end = offset + bytes;
  }
  consider(kArena);
  return best;
}

size_t gaps(const std::map<size_t, size_t>& held) {
  size_t count = 0, end = 0;
  for (const auto& [offset, bytes] : held) {
    count += offset > end;
    end = offset + bytes;
  }
  return count + (end < kArena);
}

void check_model(std::mt19937_64& generator) {
  Arena arena(kArena + Arena::kPage);  // the page more is less than what is reserved at a time
  CHECK(arena.usage().reserved == kArena);
  char* base = nullptr;
  std::map<size_t, size_t> model;  // offsets and sizes
  std::vector<Held> held;
  size_t highest = 0, refused = 0;
  for (int step = 0; step < 4000; ++step) {
    // Fills up and drains in turn, so that a full arena and a nearly empty one are met.
    const bool filling = (step / 400) % 2 == 0;
    if (held.empty() || generator() % 8 < (filling ? 6 : 2)) {
      const size_t bytes = draw_size(generator), expected = best_fit(model, pages(bytes));
      void* block = arena.allocate(bytes);
      if (expected == kArena) {
        CHECK(!block);
        ++refused;
        continue;
      }
      CHECK(block);
      if (!base) base = static_cast<char*>(block);
      CHECK(static_cast<char*>(block) == base + expected);
      CHECK(reinterpret_cast<uintptr_t>(block) % Arena::kPage == 0);
      CHECK(arena.owns(block) && arena.owns(static_cast<char*>(block) + bytes - 1));
      model[expected] = pages(bytes);
      highest = std::max(highest, expected + pages(bytes));
      held.emplace_back(block, bytes, static_cast<unsigned char>(step));
    } else {
      std::swap(held[generator() % held.size()], held.back());
      CHECK(held.back().intact());
      model.erase(reinterpret_cast<char*>(held.back().data) - base);
      arena.release(held.back().data);
      held.pop_back();
    }
    const Arena::Usage usage = arena.usage();
    size_t in_use = 0;
    for (const auto& [offset, bytes] : model) in_use += bytes;
    CHECK(usage.in_use == in_use && usage.blocks == model.size());
    CHECK(usage.free_blocks == gaps(model) && usage.highest == highest);
  }
  CHECK(refused > 0);
  for (const Held& one : held) {
    CHECK(one.intact());
    arena.release(one.data);
  }
  CHECK(arena.usage().free_blocks == 1 && arena.usage().in_use == 0 && arena.usage().blocks == 0);
  CHECK(!arena.owns(base - 1) && !arena.owns(base + kArena) && !arena.owns(nullptr));
  CHECK(arena.allocate(kArena) == base);
}

// Allocates, marks, checks and frees until told to stop, or `steps` times.
void use(Arena& arena, uint64_t seed, int steps, const std::atomic<bool>* stop = nullptr) {
  std::mt19937_64 generator(seed);
  std::vector<Held> held;
  for (int step = 0; stop ? !*stop : step < steps; ++step) {
    if (held.size() < 8 && generator() % 2) {
      const size_t bytes = std::min(draw_size(generator), size_t{1} << 18);
      if (void* block = arena.allocate(bytes)) {
        held.emplace_back(block, bytes, static_cast<unsigned char>(generator()));
      }
    } else if (!held.empty()) {
      std::swap(held[generator() % held.size()], held.back());
      CHECK(held.back().intact());
      arena.release(held.back().data);
      held.pop_back();
    }
  }
  for (const Held& one : held) {
    CHECK(one.intact());
    arena.release(one.data);
  }
}

void check_threads(std::mt19937_64& generator) {
  Arena arena(kArena);
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) threads.emplace_back(use, std::ref(arena), generator(), 2000, nullptr);
  for (std::thread& thread : threads) thread.join();
  CHECK(arena.usage().free_blocks == 1 && arena.usage().in_use == 0);
}

void check_forks(std::mt19937_64& generator) {
  static Arena arena(kArena);
  arena.survive_forks();
  const Held before(arena.allocate(100000), 100000, 42);
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) threads.emplace_back(use, std::ref(arena), generator(), 0, &stop);
  for (int i = 0; i < 30; ++i) {
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
      alarm(20);  // a child whose lock is held for ever fails
      use(arena, generator() + i, 100);
      CHECK(before.intact());
      _exit(0);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  CHECK(before.intact());
  arena.release(before.data);
  CHECK(arena.usage().free_blocks == 1);
}

void check_refusals(std::mt19937_64&) {
  Arena none(SIZE_MAX / 2);  // more addresses than there are
  CHECK(none.usage().reserved == 0 && !none.allocate(1) && !none.owns(&none));
  Arena arena(kArena);
  CHECK(!arena.allocate(0) && !arena.allocate(kArena + 1) && !arena.allocate(SIZE_MAX));
  void* first = arena.allocate(Arena::kPage);
  CHECK(first);
  const rlimit limit{Arena::kPage, RLIM_INFINITY};  // no more memory for data of any kind
  rlimit before;
  CHECK(getrlimit(RLIMIT_DATA, &before) == 0 && setrlimit(RLIMIT_DATA, &limit) == 0);
  void* refused = arena.allocate(kArena / 2 + Arena::kPage);
  CHECK(setrlimit(RLIMIT_DATA, &before) == 0);
  CHECK(!refused && arena.usage().blocks == 1 && arena.usage().free_blocks == 1);
  void* second = arena.allocate(kArena / 2 + Arena::kPage);
  CHECK(second);
  arena.release(first);
  arena.release(second);
  CHECK(arena.usage().free_blocks == 1);
}

}  // namespace

int main(int count, char** words) {
  if (count != 3) return 2;
  const std::string check = words[1];
  std::mt19937_64 generator(std::strtoull(words[2], nullptr, 10));
  if (check == "model") return check_model(generator), 0;
  if (check == "threads") return check_threads(generator), 0;
  if (check == "forks") return check_forks(generator), 0;
  if (check == "refusals") return check_refusals(generator), 0;
  return 2;
}
