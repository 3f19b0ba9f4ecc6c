// Packed weights, kept while the parameter they were made from is unchanged.
//
// A kept weight is found by its storage, place, sizes, strides, version counter and a sample of its numbers, so that
// what an optimiser step, load_state_dict, an edit in place or `.data` changed is packed anew; deepcopy, pickling and
// `.to()` make other tensors, which start with nothing kept. Kept is only what is worth it:
//   * not while the weight is trained (autograd says so, keep_packed_weights): it will change before long;
//   * not tensors without a version counter (made under torch.inference_mode);
//   * from the second call on that finds the weight unchanged.
// A weight's entries are dropped when it changes or dies. One edit is not seen: of single numbers, behind the version
// counter's back (through `.data` or numpy), that miss the sample.
#pragma once
#include <ATen/core/Tensor.h>

#include "algorithms.h"

namespace convext {

// The packed form of `weight` for this call, 64-byte aligned inside the tensor's memory; see aligned().
at::Tensor packed_weight(const ConvAlgorithm& algorithm, const ConvGeometry& geometry, DType dtype, Direction direction,
                         const at::Tensor& weight);

// Bytes of all that is kept.
int64_t packed_weight_bytes();
// Forgets all of it.
void clear_packed_weights();
// Forgets what was packed of this weight's memory: somebody has filled it behind the version counter's back.
void forget_packed_weight(const at::Tensor& weight);
// Whether calls of this thread may keep what they pack (true at first); returns what was.
bool keep_packed_weights(bool keep);

}  // namespace convext
