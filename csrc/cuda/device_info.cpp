// what the host sides ask of a device

#include "cuda/device.h"
#include "cuda/host.h"

namespace sola::cuda {

// by the interface that every device registers: needs no CUDA headers, and links against any torch
void* current_stream(const at::Device& device) {
  const c10::impl::VirtualGuardImpl guard(device.type());
  return reinterpret_cast<void*>(guard.getStream(device).native_handle());
}

DeviceSize size_of(const at::Device& device) {
  static const std::vector<SolaCudaDevice> devices = visible_cuda_devices();
  const auto index = static_cast<size_t>(device.index());
  if (index >= devices.size()) return {};
  const SolaCudaDevice& d = devices[index];
  return {d.multiprocessors, 10 * d.major + d.minor};
}

}  // namespace sola::cuda
