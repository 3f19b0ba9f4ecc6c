// Which Winograd tiles "auto" may use, for the whole process.
#pragma once

namespace convext::cpu {

// off: auto never chooses winograd. accurate: tiles with a norm-wise error below 2.5e-6 in float32. fast: also larger
// ones (5x5 kernels), near 5e-6.
enum class WinogradMode { off, accurate, fast };

WinogradMode winograd_mode();
inline const char* name_of(WinogradMode mode) {
  return mode == WinogradMode::off ? "off" : mode == WinogradMode::accurate ? "accurate" : "fast";
}
void set_winograd_mode(WinogradMode mode);

}  // namespace convext::cpu
