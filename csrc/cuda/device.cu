#include <cuda_runtime.h>

#include <cstring>

#include "cuda/device.h"

int sola_cuda_devices(SolaCudaDevice* devices, int capacity) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    // no driver or no device: forget the error, so that it doesn't surface in somebody else's call
    (void)cudaGetLastError();
    return 0;
  }
  for (int i = 0; i < count && i < capacity; ++i) {
    cudaDeviceProp p;
    if (cudaGetDeviceProperties(&p, i) != cudaSuccess) {
      (void)cudaGetLastError();
      return i;
    }
    SolaCudaDevice& d = devices[i];
    std::strncpy(d.name, p.name, sizeof(d.name) - 1);
    d.name[sizeof(d.name) - 1] = '\0';
    d.major = p.major;
    d.minor = p.minor;
    d.multiprocessors = p.multiProcessorCount;
    d.memory_bytes = static_cast<long long>(p.totalGlobalMem);
    d.l2_bytes = p.l2CacheSize;
    d.shared_bytes_per_multiprocessor = static_cast<long long>(p.sharedMemPerMultiprocessor);
  }
  return count;
}
