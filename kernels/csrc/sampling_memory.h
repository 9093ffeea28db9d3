// The working memory of drawing from one row. Included inside an anonymous namespace of each file that needs it.

constexpr int64_t kSpan = 512;      // tokens whose weights are computed at once; rows are padded to a multiple of it
constexpr int64_t kBins = 256;      // bins of weights of similar size
constexpr int64_t kTables = 8;      // neighbouring tokens use different tables, so that additions need not wait
constexpr int64_t kSpare = 16;      // elements that may be written after the last one

struct SamplingMemory {
  uint32_t* weight;   // [vocab], padded; holds the fp32 logits at first
  uint64_t* sums;     // the sum of each span's weights
  uint64_t* tables;   // [kTables, kBins]
  uint64_t* mass;     // [kBins], the sums of all tables
  uint64_t* count;    // [kBins]
  uint32_t* value;    // the weights of the tokens that are left in a search; `id` has their ids
  int32_t* id;

  static int64_t padded(int64_t vocab) { return (vocab + kSpan - 1) / kSpan * kSpan; }
  static int64_t bytes(int64_t vocab) {
    int64_t size = padded(vocab);
    return 4 * size + 8 * size / kSpan + 8 * (kTables + 2) * kBins + 2 * 4 * (size + kSpare) + kLine;
  }
  SamplingMemory(char* at, int64_t vocab) {
    int64_t size = padded(vocab);
    auto take = [&](int64_t count_of_bytes) {
      char* taken = at;
      at += count_of_bytes;
      return (void*)taken;
    };
    weight = (uint32_t*)take(4 * size);
    tables = (uint64_t*)take(8 * kTables * kBins);
    mass = (uint64_t*)take(8 * kBins);
    count = (uint64_t*)take(8 * kBins);
    value = (uint32_t*)take(4 * (size + kSpare));
    id = (int32_t*)take(4 * (size + kSpare));
    sums = (uint64_t*)take(8 * size / kSpan);
  }
};
