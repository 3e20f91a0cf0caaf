// What a pass through decoder layers is given; `native/stack.py` fills the same structures.
// All numbers are int64 or double so that both sides agree on the layout without packing.

#pragma once
#include <cstdint>

namespace anyorder {

struct Layer {
    // Weights [outputs, inputs]; biases and norms of the heads may be null.
    const void *attention_norm, *qkv, *qkv_bias, *query_norm, *key_norm, *out, *out_bias;
    const void *mlp_norm, *gate_up, *gate_up_bias, *down, *down_bias;
    void *keys, *values;   // pages [pages, page size, key heads, head width]
    int64_t rope;          // which of the pass's rotations; -1: none
    int64_t window;        // a query sees keys less than so many positions before it; 0: all
    double scale;          // of attention's scores
};

struct Group {  // as core.batch.AttentionGroup
    int64_t first_row, num_requests, num_queries, num_keys;
    const int64_t* pages;    // [requests, pages]; null: keys are the group's own new tokens
    const uint8_t* visible;  // [requests, queries, keys]; null: causal, keys are queries
    const int64_t* key_positions;
    int64_t page_stride, visible_stride, key_position_stride;  // between requests, in elements
};

struct Rotation {
    const void *cosines, *sines;  // [rows, rotated width]
    int64_t width;
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
};

}  // namespace anyorder
