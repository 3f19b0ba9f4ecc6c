// As check.cpp, for direct pooling alone (tests/test_cuda_pooling.py).
#include "checking_pools.h"

int main() {
  catch_faults();
  std::string line, kind;
  while (std::getline(std::cin, line)) {
    Reader reader{std::istringstream(line)};
    reader.line >> kind;
    check_pool(reader, {&cuda::pool_direct}, line);
  }
  return report();
}
