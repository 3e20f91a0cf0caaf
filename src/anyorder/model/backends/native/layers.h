// What a pass through decoder layers is given; `native/stack.py` fills the same structures.
// All numbers are int64 or double so that both sides agree on the layout without packing.

#pragma once
#include <cstdint>
#include <vector>

namespace anyorder {

struct Matrix {            // weights [outputs, width] without gaps
    const void* values;    // of the pass's type, or bytes as `quantized.inc` describes
    const void* bias;      // [outputs] of the pass's type, or null
    int64_t bits;          // 8 or 4; 0: not quantised
    int64_t outputs, width;
};

struct Layer {
    Matrix qkv, out, gate_up, down;
    const void *attention_norm, *query_norm, *key_norm, *mlp_norm;  // of the heads may be null
    void *keys, *values;   // pages [pages, page size, key heads, head width]
    float *key_scales, *value_scales;  // [pages, page size, key heads] of int8 pages; or null
    int64_t rope;          // which of the pass's rotations; -1: none
    int64_t window;        // a query sees keys less than so many positions before it; 0: all
    double scale;          // of attention's scores
};

struct Group {  // as core.batch.AttentionGroup
    int64_t first_row, num_requests, num_queries, num_keys;
    const int64_t* pages;      // [rows, pages]; null: keys are the group's own new tokens
    const int64_t* page_rows;  // [requests], each one's row; null: in order
    const uint8_t* visible;    // [requests, queries, keys]; null: causal
    const int64_t* past;       // [requests], keys before those, which are all seen; null: none
    const int64_t* key_positions;  // null: in order, and the new ones where the queries are
    int64_t page_stride, visible_stride, key_position_stride;  // between requests, in elements
};

struct Rotation {
    const void *cosines, *sines;  // [positions, rotated width]
    int64_t width;
};

// Of 32 inputs of a quantised matrix: their scale, and what their sum adds to every output, which is
// scaled for weights of 4 bits, and -128 times for those of 8.
struct InputGroup {
    float scale;
    union {
        float sum;
        int32_t offset;
    };
};

struct QuantizedRow {
    int8_t* values;       // [width]
    InputGroup* groups;   // [width / 32]
};

// Inputs of a quantised matrix. A row's groups lie behind its values, so that one pointer reaches all
// of it: those of several rows must fit into the processor's registers.
class QuantizedRows {
  public:
    QuantizedRows(int64_t num_rows, int64_t width)
        : width(width), row_bytes(width + width / 32 * static_cast<int64_t>(sizeof(InputGroup))),
          memory_(num_rows * row_bytes) {}
    QuantizedRow operator[](int64_t n) {
        int8_t* values = memory_.data() + n * row_bytes;
        return {values, reinterpret_cast<InputGroup*>(values + width)};
    }
    const int64_t width, row_bytes;

  private:
    std::vector<int8_t> memory_;
};

struct Pass {
    int64_t num_rows, width, num_heads, num_kv_heads, head_width, mlp_width, page_size;
    int64_t num_layers, num_groups, num_threads;
    int64_t activation;  // 0: SiLU; 1: GELU by tanh
    double epsilon;
    void* residual;  // [rows, width], read and written
    const int64_t *slots, *positions;  // [rows]
    const Layer* layers;
    const Group* groups;
    const Rotation* rotations;
    const void* final_norm;  // [width]; null: the residual stream is left as it is
};

}  // namespace anyorder
