"""Both sides of each doubt: the smallest trees in which a reading is just weak, or just strong.

A line with ``#`` is the name of the tree below it. For the rest see `trees_as_text.py`.
"""

STRENGTH = {
    "may be last": """
        # what the next takes
        a/kernel 64x20 io
        b/kernel 20x32 io
        norm/scale 64 -
        last_norm/scale 32 -
        # what nothing near takes
        x/a/kernel 64x20 ~io
        y/b/kernel 20x32 io
        norm/scale 64 -
        last_norm/scale 32 -
        # the width
        x/a/kernel 20x64 io
        y/b/kernel 64x20 ~io
        norm/scale 64 -
        # a first layer may be far from what takes it
        x/a/kernel 17x20 io
        y/b/kernel 20x32 io
        norm/scale 64 -
        last_norm/scale 32 -
        # not if it shrinks what it reads
        x/a/kernel 21x20 ~io
        y/b/kernel 20x32 io
        norm/scale 64 -
        last_norm/scale 32 -
        # two of one shape
        x_0/a/kernel 64x20 io
        x_1/a/kernel 64x20 io
        y/b/kernel 20x32 io
        norm/scale 64 -
        last_norm/scale 32 -
        # two of another shape
        x_0/a/kernel 64x20 ~io
        x_1/a/kernel 64x21 ~io
        y/b/kernel 20x64 io
        z/b/kernel 21x64 io
        norm/scale 64 -
        # a query
        x/query/kernel 64x20 io
        y/b/kernel 20x32 io
        norm/scale 64 -
        last_norm/scale 32 -
        # a router
        x/router/kernel 64x20 io
        y/b/kernel 20x32 io
        norm/scale 64 -
        last_norm/scale 32 -
        # an adapter
        x/lora/kernel 64x20 io
        y/b/kernel 20x32 io
        norm/scale 64 -
        last_norm/scale 32 -
        # taken by an earlier layer of its name
        Dense_0/kernel 20x32 io
        Dense_1/kernel 64x20 ~io
        norm/scale 64 -
        last_norm/scale 32 -
        # taken by a later one
        Dense_0/kernel 64x20 io
        Dense_1/kernel 20x32 io
        norm/scale 32 -
        # taken by a head
        x/a/kernel 64x20 io
        x/lm_head/kernel 20x100 -
        norm/scale 64 -
        # its size is what a head gives
        x/a/kernel 64x20 ~io
        x/lm_head/kernel 64x20 ~-
        y/b/kernel 20x32 io
        norm/scale 64 -
        last_norm/scale 32 -
        # taken by a head of PyTorch's
        x/a/linear/weight 20x64 oi
        x/a/linear/bias 20 -
        x/a/lm_head/weight 100x20 -
        norm/weight 64 -
        # a table takes nothing
        x/a/kernel 64x20 ~io
        x/emb/embedding 20x64 -
        y/b/kernel 20x32 io
        norm/scale 64 -
        last_norm/scale 32 -
        # taken by a layer of one output
        x/a/kernel 64x20 io
        x/value/kernel 20x1 -
        norm/scale 64 -
        # taken in the list around
        x/layers_0/a/kernel 64x20 io
        x/b/kernel 20x64 io
        norm/scale 64 -
        # taken in the scope around, which is no list
        x/layers/a/kernel 64x20 ~io
        x/b/kernel 20x64 io
        norm/scale 64 -
        # an item of a list, taken beside the list
        x/mlp/0/weight 20x64 oi
        x/mlp/0/bias 20 -
        x/out/weight 32x20 oi
        x/out/bias 32 -
        norm/weight 64 -
        last_norm/weight 32 -
        # gates of a cell of PyTorch's
        lstm/weight_ih_l0 80x64 oi
        lstm/weight_hh_l0 80x20 oi
        lstm/bias_ih_l0 80 -
        lstm/bias_hh_l0 80 -
        proj/weight 64x20 oi
        proj/bias 64 -
        norm/weight 64 -
        # stacked layers
        layers/a/kernel 3x64x20 bio
        layers/b/kernel 3x20x64 bio
        layers/norm/scale 3x64 -
        # a convolution that the next takes
        a/conv1/kernel 3x3x3x16 iiio
        a/conv2/kernel 3x3x16x24 iiio
        a/conv3/kernel 3x3x24x24 ~iiio
        norm/scale 64 -
        # a convolution of a numbered block
        a_0/conv1/kernel 3x3x3x16 iiio
        a_0/conv2/kernel 3x3x16x24 iiio
        a_0/conv3/kernel 3x3x24x24 iiio
        norm/scale 64 -
        # a convolution that a dense layer takes at all places
        a/conv1/kernel 3x3x3x16 iiio
        a/conv2/kernel 3x3x16x24 iiio
        a/dense/kernel 48x64 io
        norm/scale 64 -
        # a layer that another takes in parts
        x/a/kernel 64x20 ~io
        x/b/kernel 40x64 io
        norm/scale 64 -
    """,
    "experts": """
        # with a projection's name
        router/kernel 64x9 io
        w_up 9x64x8 bio
        norm/scale 64 -
        # without a projection's name
        router/kernel 64x9 io
        moe/linear/kernel 9x64x32 ~bio
        norm/scale 64 -
    """,
    "heads": """
        # in attention
        norm/scale 64 -
        self_attention/query/kernel 64x5x7 ioo
        self_attention/out/kernel 5x7x64 iio
        # outside
        norm/scale 64 -
        mixer/query/kernel 64x5x7 ~ioo
        # a bias and a query's name
        mixer/query/kernel 64x5x7 ioo
        mixer/query/bias 5x7 -
        # a bias alone
        mixer/mix/kernel 64x5x7 ~ioo
        mixer/mix/bias 5x7 -
        # a query beside an output
        mixer/query/kernel 64x5x7 ioo
        mixer/out/kernel 5x7x64 iio
        # an output one scope out
        norm/scale 64 -
        attention/y/u_dense/kernel 64x5x7 ioo
        attention/out/kernel 5x7x64 iio
        # an output two scopes out
        norm/scale 64 -
        attention/y/z/u_dense/kernel 64x5x7 ~ioo
        attention/out/kernel 5x7x64 iio
        # four axes with a bias, in attention
        attn/qkv/kernel 64x3x4x5 iooo
        attn/qkv/bias 3x4x5 -
        # four axes with a bias
        mixer/qkv/kernel 64x3x4x5 ~iooo
        mixer/qkv/bias 3x4x5 -
        # four axes by the width, in attention
        norm/scale 64 -
        attn/q/kernel 64x2x4x8 ~iooo
    """,
    "windows": """
        # one channel, in a convolution
        conv/kernel 16x16x1x8 -
        a/kernel 8x8 io
        # the only channel of the first
        layers_0/kernel 10x10x1x8 ~iiio
        layers_0/bias 8 -
        layers_1/kernel 3x3x8x8 iiio
        layers_1/bias 8 -
        norm/scale 8 -
        # two channels
        layers_0/kernel 10x10x2x8 iiio
        layers_0/bias 8 -
        layers_1/kernel 3x3x8x8 iiio
        layers_1/bias 8 -
        norm/scale 8 -
        # square
        places/kernel 4x4x16x8 ~iiio
        # square, of two
        places/kernel 2x2x16x8 ~iiio
        # square, in a convolution
        conv_in/kernel 4x4x16x8 iiio
        # square, with a bias
        places/kernel 4x4x16x8 iiio
        places/bias 8 -
        # of one
        places/kernel 1x1x16x8 iiio
        # even and square, of PyTorch
        up/weight 16x16x2x2 ~oiii
        up/bias 16 -
        # even and square, in one axis
        blocks/weight 16x16x4 ~oii
        blocks/bias 16 -
        # odd
        up/weight 16x16x3x3 oiii
        up/bias 16 -
        # even in time alone
        conv_up/weight 16x16x2x3 oiii
        conv_up/bias 16 -
        # even, of two sizes
        up/weight 16x24x2x2 oiii
        up/bias 16 -
        # even and square, in Linen
        up/kernel 2x2x16x16 iiio
        up/bias 16 -
        # three axes
        mix/kernel 3x16x8 ~iio
        mix/bias 8 -
        # the longest of one axis, in PyTorch
        a/weight 48x24x31 oii
        a/bias 48 -
        # longer
        a/weight 48x24x32 ~oii
        a/bias 48 -
        # taken by a transposed one
        a/conv_in/weight 24x30x3 oii
        a/conv_in/bias 24 -
        a/up_transposed/weight 24x12x4 ioi
        a/up_transposed/bias 12 -
        norm/weight 12 -
        # three axes of a convolution
        conv/kernel 3x16x8 iio
        conv/bias 8 -
        # three axes of an output
        out_proj/kernel 3x16x8 iio
        out_proj/bias 8 -
        # three axes in attention
        attn/mix/kernel 3x16x8 iio
        attn/mix/bias 8 -
    """,
    "names": """
        # a square array of the user's own
        norm/scale 64 -
        attn/wo_weights 64x64 ~io
        attn/wq_weights 64x32 ~io
        # square, by a framework's name
        norm/scale 64 -
        attn/o_proj/kernel 64x64 io
        attn/q_proj/kernel 64x64 io
        # a query that gives the width
        norm/scale 64 -
        blocks_0/q_proj/kernel 32x64 ~io
        blocks_1/q_proj/kernel 32x64 ~io
        # one that reads it
        norm/scale 64 -
        blocks_0/q_proj/kernel 64x32 io
        blocks_1/q_proj/kernel 64x32 io
        # one that does both
        norm/scale 64 -
        blocks_0/q_proj/kernel 64x64 io
        blocks_1/q_proj/kernel 64x64 io
        # an output that reads the width
        norm/scale 64 -
        blocks_0/o_proj/kernel 64x32 ~io
        blocks_1/o_proj/kernel 64x32 ~io
        # an output that gives it
        norm/scale 64 -
        blocks_0/o_proj/kernel 32x64 io
        blocks_1/o_proj/kernel 32x64 io
        # a bias tells
        norm/scale 64 -
        blocks_0/q_proj/kernel 32x64 io
        blocks_0/q_proj/bias 64 -
        blocks_1/q_proj/kernel 32x64 io
        blocks_1/q_proj/bias 64 -
    """,
    "norms and tables": """
        # a norm's weight of two axes
        norm/weight 8x64 ~-
        a/kernel 64x64 io
        # of two rows
        norm/weight 2x64 ~-
        a/kernel 64x64 io
        # a norm's scale
        norm/scale 8x64 -
        a/kernel 64x64 io
        # a norm of stacked layers
        norm/w 8x64 -
        a/w 8x64x32 bio
        a/b 8x32 -
        # a norm with a unit axis
        norm/weight 1x64 -
        a/kernel 64x64 io
        # a table with fewer rows than columns
        emb/weight 20x64 ~-
        # with as many
        emb/weight 64x64 ~-
        # with more
        emb/weight 65x64 -
        # of words
        word_embeddings/weight 20x64 -
        # in Linen
        emb/embedding 20x64 -
    """,
    "borne out": """
        # a layer's name around an adapter's
        a/linear/weight 20x64 ~oi
        a/linear/bias 20 -
        o_proj/base_layer/weight 64x20 oi
        norm/weight 64 -
        # a name that is no layer's
        a/linear/weight 20x64 ~oi
        a/linear/bias 20 -
        thing/base_layer/weight 64x20 ~oi
        norm/weight 64 -
        # projections with the width
        norm/weight 64 -
        x/q_proj/weight 48x64 oi
        y/k_proj/weight 48x64 oi
        y/o_proj/weight 64x48 oi
        # one of them beside what no rule knows
        norm/weight 64 -
        x/q_proj/weight 48x64 ~oi
        x/mystery 4x12x6 ?
        y/k_proj/weight 48x64 oi
        y/o_proj/weight 64x48 oi
    """,
}
