// who touched which memory since which barrier: a race detector for the kernels that the emulator runs
//
// Built with -fsanitize=thread, whose calls before every read and write end here instead of in libtsan. Two accesses to
// the same bytes by two threads of a block, one of them a write, need a barrier of the block between them, or of the
// warp where both are in one. What lanes do together (shuffles, mma) orders no memory. Blocks of one launch have no
// order at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace simt::races {

#ifdef SOLA_RACES

enum class Kind { read, write, copy_starts, copy_ends };

// a launch of blocks with so much shared memory each
void start_launch();
void start_block(const unsigned char* shared, size_t bytes, unsigned block);
void pass_block_barrier();
void pass_warp_barrier(int warp);
// of the thread that runs; `stack` is its own, where nobody else looks
void access(Kind kind, int thread, const void* at, size_t bytes);
// the first race of the launch, or nothing
const std::string& found();

#else

enum class Kind { read, write, copy_starts, copy_ends };
inline void start_launch() {}
inline void start_block(const unsigned char*, size_t, unsigned) {}
inline void pass_block_barrier() {}
inline void pass_warp_barrier(int) {}
inline void access(Kind, int, const void*, size_t) {}
inline const std::string& found() {
  static const std::string none;
  return none;
}

#endif

}  // namespace simt::races
