// Draws allocations from an arena and compares it with a plain model, on a system that moves pages and
// on one that does not; from one thread and from many, and in the children of a process that forks
// while its threads allocate.
//
// Usage: arena_harness CHECK SEED, where CHECK is moves (whether this system moves pages), model,
// unmoved, pages, mappings, threads, forks or refusals. Exit 0 if right.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "arena_model.h"

namespace {

using fastgan::cpu::Pages;

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

// Whether this system can move pages and keep their old addresses (Linux 5.7).
bool pages_can_move() {
  const size_t bytes = 2 * Arena::kPage;
  void* range = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(range != MAP_FAILED);
  char* target = static_cast<char*>(range) + Arena::kPage;
  void* moved = mremap(range, Arena::kPage, Arena::kPage, MREMAP_MAYMOVE | MREMAP_FIXED | 4, target);
  CHECK(munmap(range, bytes) == 0);
  return moved == target;
}

// Pages of the arena that have memory, as the system counts them.
size_t resident(const char* base) {
  std::vector<unsigned char> answer(Model::kPages);
  CHECK(mincore(const_cast<char*>(base), kArena, answer.data()) == 0);
  return std::count_if(answer.begin(), answer.end(), [](unsigned char page) { return page & 1; });
}

void check_model(std::mt19937_64& generator, bool moves) {
  Arena arena(kArena + Arena::kPage);  // the page more is less than what is reserved at a time
  CHECK(arena.usage().reserved == kArena);
  char* base = nullptr;
  Model model;
  model.moves = moves;
  std::vector<Held> held;
  size_t highest = 0, refused = 0;
  for (int step = 0; step < 4000; ++step) {
    // Fills up and drains in turn, so that a full arena and a nearly empty one are met.
    const bool filling = (step / 400) % 2 == 0;
    if (held.empty() || generator() % 8 < (filling ? 6 : 2)) {
      const size_t bytes = draw_size(generator), size = pages(bytes);
      const size_t first = model.place(size / Arena::kPage);
      void* block = arena.allocate(bytes);
      if (first == Model::kPages) {
        CHECK(!block);
        ++refused;
        continue;
      }
      CHECK(block);
      const size_t expected = first * Arena::kPage;
      if (!base) base = static_cast<char*>(block);
      CHECK(static_cast<char*>(block) == base + expected);
      CHECK(reinterpret_cast<uintptr_t>(block) % Arena::kPage == 0);
      CHECK(arena.owns(block) && arena.owns(static_cast<char*>(block) + bytes - 1));
      model.take(first, size / Arena::kPage);
      highest = std::max(highest, expected + size);
      held.emplace_back(block, bytes, static_cast<unsigned char>(step));
    } else {
      std::swap(held[generator() % held.size()], held.back());
      const Held& last = held.back();
      CHECK(last.intact());
      model.release((reinterpret_cast<char*>(last.data) - base) / Arena::kPage,
                    pages(last.bytes) / Arena::kPage);
      arena.release(last.data);
      held.pop_back();
    }
    const Arena::Usage usage = arena.usage();
    CHECK(usage.in_use == model.in_use * Arena::kPage && usage.blocks == held.size());
    CHECK(usage.most_in_use == model.most_in_use * Arena::kPage);
    CHECK(usage.backed == model.backed * Arena::kPage);
    if (moves) CHECK(usage.backed <= usage.most_in_use + usage.most_in_use / 16);
    CHECK(usage.free_blocks == model.stretches() && usage.highest == highest);
    if (base && step % 16 == 0) CHECK(resident(base) == model.backed);
  }
  CHECK(refused > 0);
  for (const Held& one : held) {
    CHECK(one.intact());
    arena.release(one.data);
  }
  CHECK(arena.usage().in_use == 0 && arena.usage().blocks == 0);
  CHECK(!arena.owns(base - 1) && !arena.owns(base + kArena) && !arena.owns(nullptr));
  CHECK(arena.allocate(kArena) == base);
}

// The system refuses to move pages from now on, as one does that is too old for it.
void refuse_moves() {
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mremap, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{4, filter};
  CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
  CHECK(!pages_can_move());
}

// How many of the system's mappings lie in the arena.
size_t mappings(const char* base) {
  std::ifstream maps("/proc/self/maps");
  size_t count = 0;
  for (std::string line; std::getline(maps, line);) {
    const uintptr_t begin = std::strtoull(line.c_str(), nullptr, 16);
    count += begin - reinterpret_cast<uintptr_t>(base) < kArena;
  }
  return count;
}

// Moves pages to and fro. A move crosses no border of the system's mappings, some systems refuse
// that: as many as there are, at least, must be known.
void check_pages(std::mt19937_64& generator) {
  constexpr size_t kCount = 256;
  Pages range(kArena);
  CHECK(range.bytes() == kArena && range.make_writable(kCount * Arena::kPage));
  char* base = range.base();
  std::vector<char> holds(kCount, 0);  // the first byte of each page
  for (int step = 0; step < 2000; ++step) {
    const size_t half = kCount / 2, count = 1 + generator() % 40;
    size_t from = generator() % (half - count), to = half + generator() % (half - count);
    if (generator() % 2) std::swap(from, to);
    for (size_t page = from; page < from + count; ++page) {
      CHECK(base[page * Arena::kPage] == holds[page]);
      base[page * Arena::kPage] = static_cast<char>(generator());
    }
    std::vector<char> moved;
    for (size_t page = from; page < from + count; ++page) moved.push_back(base[page * Arena::kPage]);
    if (step % 500 == 499) {
      range.drop(from * Arena::kPage, count * Arena::kPage);
    } else {
      CHECK(range.move(from * Arena::kPage, to * Arena::kPage, count * Arena::kPage));
      std::copy(moved.begin(), moved.end(), holds.begin() + to);
    }
    std::fill_n(holds.begin() + from, count, 0);
    CHECK(mappings(base) <= range.mappings());
  }
  CHECK(!range.fixed());
}

// A step whose sizes never fit what an earlier one left, over and over: pages move in each.
void check_mappings(std::mt19937_64& generator) {
  constexpr size_t kAllowed = 100;
  Arena arena(kArena, kAllowed);
  char* base = static_cast<char*>(arena.allocate(Arena::kPage));
  size_t most = 0;
  int drops = 0;
  for (int step = 0; step < 400; ++step) {
    std::vector<Held> held;
    size_t backed = arena.usage().backed;
    for (int i = 0; i < 200; ++i) {
      if (held.size() < 12 && generator() % 3) {
        const size_t bytes = std::min(draw_size(generator), size_t{1} << 20);
        held.emplace_back(arena.allocate(bytes), bytes, static_cast<unsigned char>(generator()));
        const size_t now = arena.usage().backed;
        drops += now < backed;
        backed = now;
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
    most = std::max(most, mappings(base));
    CHECK(resident(base) * Arena::kPage <= arena.usage().backed);
  }
  // What is allowed, beside what the blocks in use had when memory was dropped the last time.
  CHECK(most <= 3 * kAllowed);
  CHECK(drops > 0);
  CHECK(arena.usage().highest < kArena);
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
  CHECK(arena.usage().blocks == 0 && arena.usage().in_use == 0);
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
  CHECK(arena.usage().blocks == 0);
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
  CHECK(arena.usage().blocks == 0 && arena.usage().free_blocks == 2);  // with memory and without
}

}  // namespace

int main(int count, char** words) {
  if (count != 3) return 2;
  const std::string check = words[1];
  std::mt19937_64 generator(std::strtoull(words[2], nullptr, 10));
  if (check == "moves") return !pages_can_move();
  if (check == "model") return check_model(generator, true), 0;
  if (check == "unmoved") return refuse_moves(), check_model(generator, false), 0;
  if (check == "pages") return check_pages(generator), 0;
  if (check == "mappings") return check_mappings(generator), 0;
  if (check == "threads") return check_threads(generator), 0;
  if (check == "forks") return check_forks(generator), 0;
  if (check == "refusals") return check_refusals(generator), 0;
  return 2;
}
