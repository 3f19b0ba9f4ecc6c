// Packed weights, kept while the parameter they were made from is unchanged.
//
// A kept weight is found by its storage, place, sizes, strides, version counter and a sample of its numbers, so that
// what an optimiser step, load_state_dict, an edit in place or `.data` changed is packed anew; deepcopy, pickling and
// `.to()` make other tensors, which start with nothing kept. Kept is only what is worth it:
//   * not while the weight is trained (autograd says so, keep_packed_weights): it will change before long;
//   * not tensors without a version counter (made under torch.inference_mode);
//   * from the second call on that finds the weight unchanged.
// What is not kept, algorithms may pack on the way, a part at a time.
// A weight's entries are dropped when it changes or dies. One edit is not seen: of single numbers, behind the version
// counter's back (through `.data` or numpy), that miss the sample.
#pragma once
#include <ATen/core/Tensor.h>

#include "algorithms.h"

namespace convext {

// Gives args, whose geometry and dtype are set, the weight in the form that the algorithm takes: packed, or as it lies.
// packed: in any case, where parts of the call are calls of their own. The tensor returned holds its memory.
at::Tensor give_weight(ConvArguments& args, const ConvAlgorithm& algorithm, Direction direction,
                       const at::Tensor& weight, bool packed = false);

// Bytes of all that is kept.
int64_t packed_weight_bytes();
// Forgets all of it.
void clear_packed_weights();
// Forgets what was packed of this weight's memory: somebody has filled it behind the version counter's back.
void forget_packed_weight(const at::Tensor& weight);
// Whether calls of this thread may keep what they pack (true at first); returns what was.
bool keep_packed_weights(bool keep);

}  // namespace convext
