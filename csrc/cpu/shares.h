// sums of which every task has a share
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>

namespace sola {

// shares (count, numbers) added up over their count, in a fixed order
inline at::Tensor add_up(const at::Tensor& shares) {
  const int64_t numbers = shares.size(1);
  auto total = at::zeros({numbers}, shares.options());
  const auto add = [&](auto* out, const auto* in) {
    for (int64_t n = 0; n < numbers; ++n) {
      double sum = 0;
      for (int64_t i = 0; i < shares.size(0); ++i) sum += double(in[i * numbers + n]);
      out[n] = sum;
    }
  };
  if (shares.scalar_type() == at::kDouble) {
    add(total.data_ptr<double>(), shares.const_data_ptr<double>());
  } else {
    add(total.data_ptr<float>(), shares.const_data_ptr<float>());
  }
  return total;
}

}  // namespace sola
