// Memory that a calling thread keeps between calls. All calls need about the same size.
#pragma once
#include <cstdlib>

#include "kernels.h"

namespace overtone {

inline int64_t rounded(int64_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

struct Scratch {
  char* data = nullptr;
  int64_t size = 0;
  ~Scratch() { std::free(data); }
  char* reserve(int64_t bytes) {
    if (bytes > size) {
      std::free(data);
      size = rounded(bytes);
      data = static_cast<char*>(std::aligned_alloc(kLine, size));
      if (!data) size = 0;
    }
    return data;
  }
};

}  // namespace overtone
