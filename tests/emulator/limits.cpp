// what a device refuses: launches beyond its limits, and addresses that a vector can't have

#include <cuda_runtime.h>

#include <map>
#include <string>

#include "simt.h"

namespace {

constexpr int64_t kMostBlocks = 0x7fffffff;
constexpr int kMostThreads = 1024;
constexpr size_t kUnaskedShared = 48 << 10;

// bytes that a kernel has asked for
std::map<const void*, size_t>& asked() {
  static std::map<const void*, size_t> it;
  return it;
}

// compute capability 8.0 unless a test says otherwise, and what one block may have there
int device_capability = 80, most_shared = 163 << 10;
constexpr int kLeastCapability = 80;
cudaError_t last_error = cudaSuccess;

}  // namespace

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, int attribute, int) {
  if (attribute != cudaDevAttrMaxSharedMemoryPerBlockOptin) return cudaErrorInvalidValue;
  *value = most_shared;
  return cudaSuccess;
}

namespace simt {

void set_most_shared(int bytes) { most_shared = bytes; }
void set_capability(int it) { device_capability = it; }
int capability() { return device_capability; }

cudaError_t keep_error(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t ask_for_shared(const void* kernel, int bytes) {
  if (device_capability < kLeastCapability) return keep_error(cudaErrorInvalidDeviceFunction);
  if (bytes > most_shared) return keep_error(cudaErrorInvalidValue);
  asked()[kernel] = size_t(bytes);
  return cudaSuccess;
}

cudaError_t check_launch(const void* kernel, int64_t blocks, int threads, size_t shared, int cluster) {
  if (device_capability < kLeastCapability) return cudaErrorNoKernelImageForDevice;
  // more than 8 blocks are not portable
  if (cluster < 1 || cluster > 8 || blocks % cluster != 0) return cudaErrorInvalidConfiguration;
  if (blocks < 1 || blocks > kMostBlocks || threads < 1 || threads > kMostThreads) return cudaErrorInvalidConfiguration;
  const auto found = asked().find(kernel);
  const size_t allowed = found == asked().end() || found->second < kUnaskedShared ? kUnaskedShared : found->second;
  // warps that aren't full would run on a device; no kernel of ours has any
  return shared > allowed || threads % 32 ? cudaErrorInvalidValue : cudaSuccess;
}

}  // namespace simt

// -fsanitize=alignment calls this before an access to an address that its type can't have; the device would stop there
extern "C" void __ubsan_handle_type_mismatch_v1(void*, unsigned long at) {
  if (simt::running_thread() >= 0)
    simt::give_up("a load or store isn't aligned to its type: address " + std::to_string(at % 4096) + " of a page");
}
