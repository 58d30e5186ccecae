// blocks of a cluster, and launches that may overlap: what either may rely on of the other

#include "machine.h"
#include "races.h"

namespace simt {

bool in_own_shared(const void* at, size_t bytes) {
  const unsigned char *begin = shared_memory(), *byte = static_cast<const unsigned char*>(at);
  return byte >= begin && byte + bytes <= begin + machine().shared_bytes;
}

void sync_cluster() {
  const int thread = machine().current;
  stop(State::cluster);
  machine().fibers[thread].met = true;
  machine().fibers[thread].reaches = false;
}
int cluster_rank() { return block_of(machine().current); }

// A block's shared memory is there from its begin to its end, which only a barrier of the cluster tells others.
void* of_rank(void* mine, int rank) {
  Machine& m = machine();
  Fiber& fiber = m.fibers[m.current];
  if (rank < 0 || rank >= m.cluster) give_up("a cluster has no block of this rank");
  if (!in_own_shared(mine, 1)) give_up("mapa: an address lies outside the block's shared memory");
  if (rank != cluster_rank()) {
    if (!fiber.met) fail("a block reaches for the memory of another that may not have begun");
    fiber.reaches = true;
  }
  return static_cast<unsigned char*>(mine) + (rank - cluster_rank()) * std::ptrdiff_t(m.shared_stride);
}

void end_thread() {
  if (machine().fibers[machine().current].reaches)
    fail("a block has reached for the memory of another that may have ended: no barrier of the cluster follows");
}

void wait_for_results() {
  machine().waited = true;
  races::wait_for_results(machine().current);
}

// Who waits for a kernel waits for those in front of it only because that one has.
void end_launch() {
  const Machine& m = machine();
  if (m.early && !m.waited) fail("a kernel that was launched early has ended without waiting for those in front");
}

}  // namespace simt
