// The tiles of AMX. Included inside the namespace of isa.cpp.
//
// C += A x B, with A [rows, 32] and B [32, lanes] in bf16 and C [rows, lanes] in fp32. A row of B holds two of the 32
// numbers for each lane. An element of C depends only on its row of A and its lane of B. The order of its sum is fixed,
// so its bits do not depend on the size of the tiles. GCC's intrinsics need tile numbers that are literals.

constexpr int64_t kTile = 16;   // maximum number of rows of a tile, and of fp32 lanes
constexpr int64_t kDepth = 32;  // numbers of bf16 that one product of tiles sums over

// The rows of each tile, and the bytes of its rows.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int64_t count, int64_t size) {
    rows[tile] = uint8_t(count);
    bytes[tile] = uint16_t(size);
  }
};

// Restores the thread's own configuration at its end: oneDNN keeps one.
class Tiles {
 public:
  Tiles() { _tile_storeconfig(&before_); }
  ~Tiles() {
    if (before_.palette)
      _tile_loadconfig(&before_);
    else
      _tile_release();
  }
  Tiles(const Tiles&) = delete;

 private:
  TileConfig before_;
};
