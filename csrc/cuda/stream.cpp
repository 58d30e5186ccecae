#include "cuda/host.h"

namespace sola::cuda {

// by the interface that every device registers: needs no CUDA headers, and links against any torch
void* current_stream(const at::Device& device) {
  const c10::impl::VirtualGuardImpl guard(device.type());
  return reinterpret_cast<void*>(guard.getStream(device).native_handle());
}

}  // namespace sola::cuda
