// kernels that were translated from PTX, and the memory that they may touch

#include "ptx.h"

#include <cfenv>
#include <map>

#include "machine.h"

namespace simt::ptx {
namespace {

struct Known {
  Kernel kernel;
  bool run = false;
};

std::map<const void*, Known>& known() {
  static std::map<const void*, Known> it;
  return it;
}

void check_alignment(uint64_t address, size_t bytes) {
  if (address % bytes) refuse("an address isn't aligned to the " + std::to_string(bytes) + " bytes that are accessed");
}

}  // namespace

void refuse(const std::string& reason) {
  give_up("PTX: " + reason);
  __builtin_unreachable();
}

bool know(const std::vector<Kernel>& kernels) {
  for (const Kernel& kernel : kernels) known().insert({kernel.kernel, {kernel}});
  return true;
}

Entry entry_of(const void* kernel) {
  const auto found = known().find(kernel);
  if (found == known().end()) return nullptr;
  found->second.run = true;
  return found->second.kernel.entry;
}

std::vector<std::string> never_run() {
  std::vector<std::string> names;
  for (const auto& [address, kernel] : known()) {
    if (!kernel.run) names.push_back(kernel.kernel.name);
  }
  return names;
}

const unsigned char* param_at(const unsigned char* params, size_t size, uint64_t address, size_t bytes) {
  check_alignment(address, bytes);
  const uint64_t begin = reinterpret_cast<uint64_t>(params);
  if (address < begin || address + bytes > begin + size) refuse("an address lies outside the parameters");
  return params + (address - begin);
}

unsigned char* shared_at(uint32_t address, size_t bytes) {
  check_alignment(address, bytes);
  const uint32_t begin = shared_address(shared_memory());
  if (address < begin || address - begin + bytes > machine().shared_bytes)
    refuse("an address lies outside the block's shared memory");
  return shared_memory() + (address - begin);
}

unsigned char* memory_at(uint64_t address, size_t bytes) {
  check_alignment(address, bytes);
  return reinterpret_cast<unsigned char*>(address);
}

// at run time, with operands that the compiler can't know
__attribute__((noinline)) float fma_down(float a, float b, float c) {
  const int mode = std::fegetround();
  std::fesetround(FE_DOWNWARD);
  volatile float x = a, y = b, z = c;
  volatile float sum = std::fma(x, y, z);
  std::fesetround(mode);
  return sum;
}

}  // namespace simt::ptx
