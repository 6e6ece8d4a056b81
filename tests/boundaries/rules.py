"""Both sides of each condition of the rules: the smallest trees in which it just holds, or just does not.

A line with ``#`` is the name of the tree below it. For the rest see `trees_as_text.py`.
"""

RULES = {
    "attention": """
        # as many heads as inputs and sizes
        layers/attn/wq 4x4x4 ioo
        layers/attn/wo 4x4x4 iio
        # a key that lies otherwise than its query
        query/kernel 64x4x32 ?
        key/kernel 4x32x64 ?
        # a key whose heads fill the width
        key/kernel 64x2x32 ~ioo
        # an output whose heads fill the width
        out/kernel 4x16x64 ~iio
        # the same beside a norm
        n/scale 64 -
        out/kernel 4x16x64 ~iio
        # as many heads as inputs, in layers
        layers/attention/query/kernel 3x8x8x16 bioo
        layers/attention/attention_output/kernel 3x8x16x8 biio
        layers/pre_attention_norm/scale 3x8 -
        # heads first, and a key that lies as the output does
        layers/0/ln/scale 64 -
        layers/0/attn/wq 4x64x16 oio
        layers/0/attn/wk 4x16x64 ?
        layers/0/attn/wo 4x16x64 iio
        # two queries and two outputs
        q/kernel 64x4x8 ioo
        query/kernel 64x2x16 ioo
        o/kernel 2x16x64 iio
        out/kernel 4x8x64 iio
        # values of another size
        attn/query/kernel 40x4x8 ioo
        attn/value/kernel 40x4x6 ioo
        attn/out/kernel 4x6x40 iio
    """,
    "einsums": """
        # six side by side are neither keys and values nor queries, keys and values
        attn/attn_vec_einsum/w 8x6x48 iio
        attn/kv_einsum/w 6x4x48x6 ?
        attn/q_einsum/w 8x48x6 oio
        # keys and values with the width before the heads
        a/attn_vec_einsum/kernel 4x8x48 iio
        a/kv_einsum/kernel 2x48x4x8 bioo
        a/q_einsum/kernel 4x48x8 oio
        # no query tells the width
        a/attn_vec_einsum/kernel 4x8x48 ?
        a/qkv_einsum/kernel 3x4x48x8 ?
        # a norm tells the width
        n/scale 48 -
        a/attn_vec_einsum/kernel 4x8x48 iio
        a/qkv_einsum/kernel 3x48x4x8 bioo
        # queries, keys and values with the heads before the width
        n/scale 48 -
        a/qkv_einsum/kernel 3x4x48x8 boio
        # four axes of a query
        n/scale 32 -
        a/q_einsum/kernel 4x32x8x8 ?
        # a query that ends with the width
        n/scale 48 -
        a/q_einsum/kernel 4x8x48 ?
        # a query with its width in front
        n/scale 48 -
        a/q_einsum/kernel 48x4x8 ioo
        # an output that begins with the width
        n/scale 48 -
        a/attn_vec_einsum/kernel 48x4x8 ?
        # an einsum of another name
        n/scale 48 -
        a/mix_einsum/kernel 4x48x8 ?
        # two axes
        n/scale 48 -
        a/q_einsum/kernel 48x8 io
        # three in front, under a name without a role
        n/scale 16 -
        a/x_einsum/kernel 3x4x16x8 boio
    """,
    "biases": """
        # heads of two layers that take nothing from each other
        x/a/kernel 10x6x3 ~ioo
        x/a/bias 6x3 -
        x/b/kernel 20x8x3 ~ioo
        x/b/bias 8x3 -
        # three axes of PyTorch's name, and a bias as long as the last
        mix/weight 4x6x12 ~iio
        mix/bias 12 -
        # a bias as long as the first axis and the second
        mix/kernel 6x6x4 ?
        mix/bias 6 -
        # of several output axes, outputs first
        up/weight/0 4x8x64 ooi
        up/bias/0 4x8 -
        norm/weight/0 64 -
        # the same without a norm
        weight/0 4x8x64 ~ooi
        bias/0 4x8 -
        # experts of two axes, outputs first, each with a bias
        p_weight 4x6x8 boi
        p_bias 4x6 -
        # two blocks on a diagonal, whose outputs lie one after another
        a/kernel 2x6x8 bio
        a/bias 16 -
        # two blocks on a diagonal that read one feature each
        a/kernel 2x1x8 -
        a/bias 16 -
        # three blocks of six features each, of which no other layer knows
        n/scale 6 -
        a/kernel 3x6x2 bio
        a/bias 3x2 -
    """,
    "blocks of features": """
        # a projection
        proj/kernel 4x6x8 ~bio
        a/kernel 24x10 ~io
        b/kernel 32x10 ~io
        # outputs first
        q_proj/weight 4x6x8 ~boi
        a/weight 24x10 ~-
        b/weight 10x32 ~oi
        # a convolution
        conv_proj/kernel 4x6x8 iio
        a/kernel 24x10 ~io
        b/kernel 32x10 ~io
        # a single block
        proj/kernel 1x6x8 ?
        a/kernel 6x10 io
        b/kernel 8x10 io
        # no projection
        mix/kernel 4x6x8 ?
        a/kernel 24x10 ~io
        b/kernel 32x10 ~io
        # only one side is known
        proj/kernel 4x6x8 ?
        a/kernel 24x10 ~io
        # with a bias of another shape
        proj/kernel 4x6x8 ?
        proj/bias 6 -
        a/kernel 24x10 ~io
        b/kernel 32x10 ~io
        # an array of another name
        proj/mixing 4x6x8 ?
        a/kernel 24x10 ~io
        b/kernel 32x10 ~io
        # two blocks, and no other size
        n/scale 12 -
        proj/kernel 2x6x6 ~bio
        # the sizes are three scopes out
        n/scale 12 -
        a/b/proj/kernel 2x6x6 ?
    """,
    "convolutions": """
        # a window of eight for each channel
        conv/kernel 8x16 -
        norm/scale 16 -
        # nine are too many
        conv/kernel 9x16 io
        norm/scale 16 -
        # a pointwise one
        pointconv/kernel 8x16 io
        # dw in a name
        dw/kernel 3x1x8 -
        # dw and a window of one
        dw/kernel 1x1x8 -
        # dw as a part of a word
        dwx/kernel 3x1x8 ?
        # dw and two axes
        dw/kernel 3x8 io
        # dw and several inputs
        dw/kernel 3x2x8 ?
        # the largest window
        a/kernel 31x31x8x16 ~iiio
        # a larger window
        a/kernel 32x32x8x16 ?
        # the largest window behind
        a/weight 64x40x31x31 oiii
        # a window behind that is no smaller than the inputs
        a/weight 64x31x31x31 ~oiii
        # a window behind of one
        a/kernel 16x8x1x1 ?
        # a window of a projection
        a/proj/kernel 3x3x8x16 ?
        # a window of an einsum
        a/einsum/kernel 3x3x8x16 ?
        # a window in attention
        attention/query/kernel 3x3x8x16 ?
        # a window of two sizes
        a/kernel 3x5x8x16 ?
        # a window under no weight's name
        a/mixing 3x3x8x16 ?
        # one input channel
        convolution/kernel 3x3x1x16 -
        # one input channel, under a name that says nothing
        a/kernel 9x1x128 ~-
        a/bias 128 -
        # the same in a projection
        up/kernel 9x1x128 iio
        up/bias 128 -
        # the same with another name
        a/mixing 9x1x128 ~iio
        a/mixing_bias 128 -
        # a filter of PyTorch
        conv/weight 16x1x5 ~-
        # a filter of PyTorch without a name
        weight 16x1x5 ~oii
        # a filter of PyTorch and a layer of as many outputs
        a/weight 16x1x5 -
        b/weight 16x8 ~oi
        # outputs before inputs, by the name
        conv2d_transpose/kernel 3x3x8x4 iioi
        # outputs before inputs, by Haiku's array
        conv_transpose/w 3x3x8x4 iioi
        # inputs before outputs
        conv_transpose/kernel 3x3x8x4 iiio
        # Linen's transposed kernel of one axis
        ConvTranspose_0/kernel 3x8x4 ioi
        ConvTranspose_0/bias 8 -
        # a window behind in attention
        attn/q_proj/weight 64x48x3x3 ?
        # a window behind in attention, of a layer without a role
        attn/mix/weight 64x48x3x3 oiii
        # a window behind under another name than PyTorch's, in attention
        attn/query/kernel 64x48x3x3 ?
        # the same in attention, of a layer without a role
        attn/mix/kernel 64x48x3x3 oiii
        # one step and one input channel, in layers
        a/kernel 5x1x1x128 -
        a/bias 5x128 -
        b/kernel 5x128x64 bio
        b/bias 5x64 -
        # two input channels, under a name that says nothing
        a/kernel 9x2x128 ~iio
        a/bias 128 -
        # an even window on five channels
        up/conv/weight 8x5x4x4 ~oiii
        # an even window on four channels
        up/conv/weight 8x4x4x4 oiii
        # a window with one even side
        conv/weight 8x16x4x3 oiii
        # a window in time and space, outputs first
        a/weight 8x16x3x5x5 ~oiiii
        # a window that is not a cube
        a/kernel 3x3x5x4x16 ?
        # a window in attention, of no projection
        attn/mix/kernel 3x3x4x16 ~iiio
        # a window under a projection's name
        out/kernel 3x3x4x16 ~iiio
        # a window of two steps for each channel
        conv/kernel 2x1x16 -
        # a window along the third axis for each channel
        conv/kernel 1x1x3x1x16 -
        # the same with a bias and without a name
        a/kernel 1x1x3x1x8 ~-
        a/bias 8 -
        # a transposed one's name four components up
        deconv/a/conv/w 3x3x8x16 iiio
        # a transposed one's name three components up
        a/deconv/conv/w 3x3x8x16 iioi
        # depthwise by its module, in groups
        dw_conv/kernel 3x3x4x8 -
        # perhaps depthwise, along the third axis
        dw/kernel 1x1x3x1x8 -
        # one that is named as PyTorch does and has its window in front
        a/weight 1x1x256x3 ?
    """,
    "routers": """
        # of PyTorch's order
        router/kernel 6x4 io
        up 4x6x12 bio
        down 4x12x6 bio
        # beside a convolution
        router/kernel 6x4 io
        conv/kernel 4x6x12 iio
        # beside a query
        router/kernel 6x4 io
        a/query 4x6x12 ?
        # a router with its outputs first
        moe/router/kernel 4x6 io
        moe/up 4x6x12 bio
        # a name that says nothing, among experts
        moe/router/kernel 6x4 io
        moe/mystery 4x12x6 ~bio
        # a name that says nothing, elsewhere
        router/kernel 6x4 io
        mystery 4x12x6 ?
        # the first axis is the model's width
        router/kernel 6x4 io
        in/kernel 4x6x12 ~ioo
        norm/scale 4 -
        # more experts than inputs
        moe/router/kernel 3x4 io
        moe/up 4x3x12 ~bio
        # as many experts as inputs
        moe/router/kernel 4x4 io
        moe/up 4x4x12 ~bio
        # square experts
        moe/router/kernel 6x4 io
        moe/up 4x6x6 bio
        # both sides are a router's inputs
        moe/a/kernel 6x4 ~io
        moe/b/kernel 12x4 ~io
        moe/down 4x12x6 bio
        # both sides, and a norm tells the width
        moe/a/kernel 6x4 ~io
        moe/b/kernel 12x4 ~io
        moe/down 4x12x6 boi
        norm/scale 12 -
        # PyTorch's
        moe/router/weight 4x6 oi
        moe/up/weight 4x12x6 boi
        moe/norm/weight 6 -
        # PyTorch's under a name without a role
        moe/router/weight 4x6 ~oi
        moe/mix/weight 4x12x6 ~boi
        # three scopes out
        a/router/kernel 6x4 io
        a/b/c/moe/up 4x6x12 ~bio
        # four scopes out
        a/router/kernel 6x4 io
        a/b/c/d/moe/kernel 4x6x12 bio
        # no experts by name, and a router three scopes out
        a/b/mix/w 4x16x8 ?
        router/w 16x4 ~io
        # beside a vector of each layer
        l/norm/scale 4x64 -
        l/experts/w 4x8x64x16 ~bbio
        l/router/w 4x64x8 bio
        l/decay_w 4x64 -
        # as many experts as rows
        n/scale 16 -
        experts/w 4x4x16 ~bio
        router/w 16x4 io
        # as many rows, without a name
        n/scale 16 -
        mix/w 4x4x16 ~bio
        router/w 16x4 io
    """,
    "experts by name": """
        # the width is the input
        experts/up 4x6x8 bio
        norm/scale 6 -
        # the width is the input, outputs first
        experts/up 4x8x6 boi
        norm/scale 6 -
        # a writer, whose output is the width
        experts/down 4x8x6 bio
        norm/scale 6 -
        # a writer, outputs first
        experts/down 4x6x8 boi
        norm/scale 6 -
        # three components out
        a/experts/c/d/kernel 4x6x8 bio
        # four components out
        experts/b/c/d/kernel 4x6x8 ?
        # five components out
        experts/b/c/d/e/kernel 4x6x8 ?
        # attention
        moe/attention/kernel 4x6x8 ?
        # shared by all
        moe/shared/kernel 4x6x8 ?
        # PyTorch's
        experts/fc/weight 4x12x6 ~boi
        # an array without a role beside weights of PyTorch's name
        q/weight 16x16 ~oi
        mlp/experts/mix 4x8x16 ~boi
        # its bias shows that outputs are first
        q/weight 16x16 ~oi
        experts/up 4x24x16 ~boi
        experts/up_bias 4x24 -
        experts/mix 4x24x16 ~boi
        # biases of another scope
        q/weight 16x16 ~oi
        m/up 4x16x24 bio
        m/up_bias 4x24 -
        m/experts/mix 4x24x16 ~bio
        # a sibling's bias shows inputs first where no stack fits all
        ln/weight 16 -
        q/weight 16x16 ~oi
        experts/up 4x16x24 bio
        experts/up_bias 4x24 -
        experts/mix 4x24x16 ~bio
        experts/sink_w 3x5x7 ~bio
        # a sibling's bias shows outputs first where no stack fits all
        ln/weight 16 -
        q/weight 16x16 ~oi
        experts/up 4x24x16 boi
        experts/up_bias 4x24 -
        experts/mix 4x24x16 ~boi
        experts/sink_w 3x5x7 ~boi
        # a sibling of two axes has a bias
        ln/weight 16 -
        q/weight 16x16 ~oi
        experts/lin 16x24 ~io
        experts/lin_bias 24 -
        experts/mix 4x24x16 ~boi
        # a sibling's bias shows outputs first, beside a norm
        ln/weight 16 -
        q/weight 16x16 ~oi
        experts/up 4x24x16 boi
        experts/up_bias 4x24 -
        experts/mix 4x24x16 ~boi
        # beside a bias of attention, without a norm
        q_proj/weight 24x16 oi
        q_proj/bias 24 -
        experts/fc1/weight 4x24x16 ~boi
    """,
    "gated halves": """
        # by name
        mlp/gate_up 2x6x12 ~bio
        mlp/down/kernel 12x6 ~io
        # three are no halves
        mlp/gate_up 3x6x12 ?
        mlp/down/kernel 12x6 ~io
        # an array without a role
        mlp/weights 2x6x12 ~bio
        mlp/down/kernel 12x6 ~io
        # a name that says nothing
        mlp/mystery 2x6x12 ?
        mlp/down/kernel 12x6 ~io
        # a window of two
        mlp/conv/kernel 2x6x12 iio
        mlp/down/kernel 12x6 ~io
        # two heads of a query
        mlp/query/kernel 2x6x12 ?
        mlp/down/kernel 12x6 ~io
        # two heads of an output
        mlp/out/kernel 2x6x12 ~iio
        mlp/next/kernel 12x6 ~io
        # gating in attention
        attn/gating_query/kernel 2x6x12 bio
        attn/down/kernel 12x6 ~io
        # one scope out
        a/b/gates/kernel 2x6x12 bio
        a/c/kernel 12x6 ~io
        # two scopes out
        a/b/c/gates/kernel 2x6x12 ?
        a/d/kernel 12x6 ~io
        # outputs first
        mlp/up/kernel 2x12x6 boi
        mlp/down/kernel 12x6 ~io
        # of experts
        experts/gate_up 4x2x6x12 ~bbio
        experts/down 4x12x6 ~bio
        # of other experts
        experts/gate_up 4x2x6x12 ?
        other/down 5x12x6 ?
    """,
    "low rank": """
        # of two axes in and out
        q/lora_a 64x4x2 iio
        q/lora_b 2x64x4 ioo
        # of stacks that differ
        q/lora_a 6x512x8 ?
        q/lora_b 5x8x512 ?
        # the rank is the width
        q/lora_a 6x8x8 ?
        q/lora_b 6x8x8 ?
        # the rank is larger than the outputs
        q/lora_a 6x16x8 ~bio
        q/lora_b 6x8x4 ~bio
        # the rank is larger than the inputs
        q/lora_a 6x4x8 ~bio
        q/lora_b 6x8x16 ~bio
        # ranks that differ
        q/lora_a 64x4 ~-
        q/lora_b 5x64 ~io
        # the other way round
        q/lora_a 4x64 ~io
        q/lora_b 64x4 ~io
        # the rank is as large as the outputs
        q/lora_a 64x8 ~io
        q/lora_b 8x2x4 ?
        # the rank is smaller than the outputs
        q/lora_a 64x7 io
        q/lora_b 7x2x4 ioo
        # capitals
        q/lora_A 64x4 io
        q/lora_B 4x64 io
        # one factor alone
        q/lora_a 64x4 ~io
    """,
    "one for each feature": """
        # by heads
        n/scale 32 -
        x/r_k 4x8 ~-
        # a weight's word and a query
        n/scale 32 -
        x/w_q 4x8 ~-
        # a weight
        n/scale 32 -
        x/weight 4x8 ~oi
        # with a bias
        n/scale 32 -
        x/r_k 4x8 io
        x/r_k_bias 8 -
        # three axes
        n/scale 32 -
        x/r_k 4x4x2 ?
        # learned queries need layers with names
        pool/query 16x64 ~io
        ln/scale 64 -
        # learned queries end with the width
        pool/query 64x16 ~io
        ln/scale 64 -
        pool/dense/kernel 64x64 io
        # learned queries have no bias
        pool/query 16x64 io
        pool/query_bias 64 -
        pool/dense/kernel 64x64 io
        ln/scale 64 -
    """,
    "orientation": """
        # three times as many outputs
        c_attn/kernel 8x24 io split 8+8+8
        # four times as many
        c_attn/kernel 8x32 io
        # three times as many inputs
        c_attn/kernel 24x8 io
        # three times as many outputs, PyTorch's
        norm/weight 8 -
        norm/bias 8 -
        c_attn/weight 24x8 oi split 8+8+8
        # siblings that agree
        x/a/kernel 8x12 ~oi
        x/a/bias 8 -
        y/b/kernel 6x6 ~oi
        # siblings that don't
        a/kernel 8x12 ~oi
        a/bias 8 -
        c/kernel 12x7 ~io
        c/bias 7 -
        b/kernel 6x6 ~io
        # a square sibling says nothing
        a/kernel 8x8 ~io
        a/bias 8 -
        b/weight 6x6 ~oi
        # a weight and the width, in a user's tree
        n/scale 6 -
        mystery 6x8 ~io
        # a name that says nothing, in a framework's tree
        n/scale 6 -
        a/kernel 6x6 ~io
        a/mystery 6x8 ~-
        # the same, where the width is behind
        n/scale 6 -
        a/kernel 6x6 ~io
        a/mystery 8x6 ?
        # anybody's weights beside a norm
        n/scale 8 -
        fc1_weight 16x8 ~oi
        fc2_weight 8x16 ~oi
        # fused queries, keys and values of PyTorch beside anybody's weight
        n/scale 16 -
        in_proj_weight 48x16 oi split 16+16+16
        out_weight 16x16 ~oi
        # a sibling's bias two scopes out
        a/b/x/kernel 10x12 ~oi
        a/y/kernel 16x24 ~oi
        a/y/bias 16 -
        z/scale 5 -
        # a sibling's bias four scopes out
        a/b/c/d/x/kernel 10x12 ~io
        a/y/kernel 16x24 ~oi
        a/y/bias 16 -
        # a number and a name for arrays
        0 4x8 ~io
        a 8 -
    """,
    "cells": """
        # three gates
        cell/kernel 8x12 io split 4+4+4
        cell/recurrent_kernel 4x12 io split 4+4+4
        # four gates
        cell/kernel 8x16 io split 4+4+4+4
        cell/recurrent_kernel 4x16 io split 4+4+4+4
        # five
        cell/kernel 8x20 io
        cell/recurrent_kernel 4x20 ~io
        # two
        cell/kernel 8x8 ~io
        cell/recurrent_kernel 4x8 ~io
        # written out
        cell/w_i 8x12 io split 4+4+4
        cell/w_h 4x12 io split 4+4+4
        # in modules
        cell/dense_i/kernel 8x12 io split 4+4+4
        cell/dense_h/kernel 4x12 io split 4+4+4
        # at the root
        kernel 8x12 io split 4+4+4
        recurrent_kernel 4x12 io split 4+4+4
        # stacked
        cell/kernel 3x8x12 bio split 4+4+4
        cell/recurrent_kernel 3x4x12 bio split 4+4+4
        n/scale 3x8 -
        # outputs that differ
        cell/kernel 8x16 ~io
        cell/recurrent_kernel 4x12 io split 4+4+4
        # Haiku's LSTM
        x/lstm/linear/w 12x16 io split 4+4+4+4
        # Haiku's LSTM with outputs that four do not divide
        x/lstm/linear/w 12x18 ~io
    """,
    "widths": """
        # queries, keys and values side by side
        n/scale 16 -
        fused/qkv/kernel 3x16x4x4 ~bioo
        # keys and values side by side
        n/scale 16 -
        fused/kv/kernel 2x16x4x4 ~bioo
        # side by side, heads before the width
        n/scale 16 -
        fused/qkv/kernel 3x4x16x4 ~boio
        # side by side, and one is missing
        n/scale 16 -
        fused/qkv/kernel 2x16x4x4 ?
        # reads the width
        n/scale 16 -
        up/kernel 16x2x12 ~ioo
        # a name that says nothing
        n/scale 16 -
        mystery 16x2x12 ?
        # a convolution
        n/scale 16 -
        conv/kernel 16x2x12 iio
        # a writer that begins with the width
        n/scale 16 -
        down/kernel 16x2x12 ?
        # an output of attention
        n/scale 16 -
        attn/o/kernel 2x12x16 iio
        # an output of anything
        n/scale 16 -
        o/kernel 2x12x16 ?
        # an output of attention, outputs first
        n/scale 16 -
        attn/o/weight 16x2x12 oii
        # an output of attention that begins with the width
        n/scale 16 -
        attn/o/kernel 16x2x12 ?
        # an output beside a query
        n/scale 16 -
        a/query/kernel 16x5x7 ~ioo
        a/out/kernel 3x4x16 ~iio
        # a window of two sizes
        n/scale 16 -
        a/kernel 3x5x4x16 iiio
        # the largest window
        n/scale 16 -
        a/kernel 31x3x4x16 iiio
        # a larger window
        n/scale 16 -
        a/kernel 32x3x4x16 ?
        # a window under a name that says nothing
        n/scale 16 -
        a/mystery 3x5x4x16 ?
        # reads the width, outputs first
        n/scale 16 -
        up/weight 12x2x16 ~ooi
        # without a role, outputs first
        n/scale 16 -
        mix/weight 12x2x16 ?
        # from a compressed rank
        n/scale 16 -
        a/kv_norm/scale 6 -
        a/wkv_b/kernel 6x2x8 ~ioo
        a/wk/kernel 16x2x6 ~ioo
        # from another number of inputs
        n/scale 16 -
        a/wkv_b/kernel 6x2x8 ?
        # an output that begins with the width, beside a query one scope out
        n/scale 16 -
        attn/query/kernel 16x2x12 ioo
        attn/b/out/kernel 16x2x12 ?
        # a window on many channels
        n/scale 16 -
        a/kernel 3x5x64x16 iiio
        # from a compressed rank with its norm one scope out
        n/scale 16 -
        a/kv_norm/scale 6 -
        a/b/wkv_b/kernel 6x2x8 ~ioo
        # from a compressed rank with its norm four scopes out
        n/scale 16 -
        x/kv_norm/scale 6 -
        x/a/b/c/wkv_b/kernel 6x2x8 ?
        # experts of two axes, of which one has no bias
        mlp/mlp1_weight 32x576x288 boi
        mlp/mlp1_bias 32x576 -
        mlp/mlp2_weight 32x288x280 boi
        norm/scale 288 -
    """,
}
