// A chain of layers run by bands of rows: what a layer hands to the next stays in second-level cache.
//
// A band is some rows of the last layer's output. Going back from it, each layer owes the rows that the next one's
// windows see; what was made for the band before is kept, so nothing is computed twice but at the seams between tasks.
// A layer's part is a call of its own algorithm on a smaller geometry: the same rows, with padding only where the image
// ends. Rows of an image lie together in channels_last, the only layout that is served.
//
// A pointwise convolution with a depthwise one behind it (the inverted residuals of mobile networks) goes one level
// further: a block of channels is made, as gemm's panels lie, in first-level cache, where the depthwise layer takes it.
//
// A task is a strip of rows of one image, or, where a block needs no bands, some blocks of it. Traffic: the first
// layer's input and the last one's output, and every layer's weight once per band.
// Limits: two-dimensional windows (depth 1), no padding above and below but zeros; algorithms whose sums do not depend
// on where a row lies (im2col, direct; not winograd, whose tiles do), so that bits are those of the layers one by one.
#pragma once
#include <vector>

#include "../algorithms.h"

namespace convext::cpu {

// A convolution or (then `conv` is null) a max pooling. The arguments are those of the layer on its own but for the
// workspace, and for input and output of all but the first and the last.
struct ChainLayer {
  const ConvAlgorithm* conv = nullptr;
  ConvArguments conv_args = {};
  const PoolAlgorithm* pool = nullptr;
  PoolArguments pool_args = {};
};

// Whether the layer can be part of a chain.
bool suits_chain(const ChainLayer& layer);

// How layers, each of which suits, are run together.
struct ChainPlan {
  int64_t rows = 0;  // of the last output in a band; 0: one by one they are as well off, because what some layer hands
                     // on stays in cache by itself, or because a band would not
  bool at_once = false;            // all rows are one band, and blocks of channels follow each other in one place
  std::vector<int64_t> most;       // rows of each layer's output in a band, at most
  std::vector<bool> blocked;       // whether a layer hands on blocks of channels
  std::vector<int64_t> workspace;  // bytes of each layer's own
  int64_t thread_bytes = 0;        // of all that a thread needs
};
ChainPlan plan_chain(const std::vector<ChainLayer>& layers);
// workspace: max_threads() times thread_bytes.
void run_chain(const std::vector<ChainLayer>& layers, const ChainPlan& plan, void* workspace);

}  // namespace convext::cpu
