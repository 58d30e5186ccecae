// the CUDA devices of this machine, by the CUDA runtime that is linked into the extension
#pragma once

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  char name[256];
  int major, minor;  // compute capability
  int multiprocessors;
  long long memory_bytes, l2_bytes, shared_bytes_per_multiprocessor;
} SolaCudaDevice;

// fills at most `capacity` entries and returns how many devices there are; 0 without a driver
int sola_cuda_devices(SolaCudaDevice* devices, int capacity);

#ifdef __cplusplus
}

#include <vector>

namespace sola {

inline std::vector<SolaCudaDevice> visible_cuda_devices() {
  std::vector<SolaCudaDevice> devices(sola_cuda_devices(nullptr, 0));
  devices.resize(sola_cuda_devices(devices.data(), static_cast<int>(devices.size())));
  return devices;
}

}  // namespace sola
#endif
