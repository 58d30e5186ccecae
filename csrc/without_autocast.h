// tensors in the dtypes that they have
#pragma once

#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

namespace sola {

// As long as it lives PyTorch's operators cast nothing: operands have been cast once, or, in a backward pass under
// autocast, were never to be. Autocast keys of all devices.
inline c10::impl::ExcludeDispatchKeyGuard without_autocast() {
  return c10::impl::ExcludeDispatchKeyGuard(
      c10::DispatchKeySet({c10::DispatchKey::AutocastCPU, c10::DispatchKey::AutocastCUDA}));
}

}  // namespace sola
