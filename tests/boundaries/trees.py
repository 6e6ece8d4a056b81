"""The same for what the whole tree shows: its stacks, edges, heads, biases, norms and bare paths.

A line with ``#`` is the name of the tree below it. For the rest see `trees_as_text.py`.
"""

TREES = {
    "edges": """
        # one matrix has no edge
        a/kernel 8x12 io
        # a last layer behind another
        a/kernel 17x64 io
        b/kernel 64x5 ~-
        # nothing gives what the last layer takes
        a/kernel 17x64 ~io
        b/kernel 63x5 ~io
        # the last layer gives a half of what it takes
        a/kernel 17x64 io
        b/kernel 64x32 ~io
        # a ninth
        a/kernel 17x63 io
        b/kernel 63x7 ~-
        # a tenth
        a/kernel 17x70 io
        b/kernel 70x7 ~-
        # an eighth
        a/kernel 17x64 io
        b/kernel 64x8 ~io
        # eight times as much
        a/kernel 17x64 io
        b/kernel 64x512 ~io
        # nine times as much
        a/kernel 17x64 io
        b/kernel 64x576 ~-
        # a norm gives what the last layer takes
        n/scale 64 -
        b/kernel 64x5 ~-
        a/kernel 17x9 ~io
        # a bias gives nothing
        a/bias 64 -
        b/kernel 64x5 ~io
        a/kernel 17x9 ~io
        # four networks side by side
        critics/0/a/kernel 17x64 io
        critics/0/b/kernel 64x5 ~io
        critics/1/a/kernel 17x64 io
        critics/1/b/kernel 64x5 ~io
        critics/2/a/kernel 17x64 io
        critics/2/b/kernel 64x5 ~io
        critics/3/a/kernel 17x64 io
        critics/3/b/kernel 64x5 ~io
        # five blocks
        blocks/0/a/kernel 17x64 io
        blocks/0/b/kernel 64x5 ~io
        blocks/1/a/kernel 17x64 io
        blocks/1/b/kernel 64x5 ~io
        blocks/2/a/kernel 17x64 io
        blocks/2/b/kernel 64x5 ~io
        blocks/3/a/kernel 17x64 io
        blocks/3/b/kernel 64x5 ~io
        blocks/4/a/kernel 17x64 io
        blocks/4/b/kernel 64x5 ~io
        # few outputs in four blocks, which other layers take
        blocks/0/a/kernel 17x64 io
        blocks/0/b/kernel 64x5 ~io
        blocks/0/c/kernel 5x30 io
        blocks/0/norm/scale 30 -
        blocks/1/a/kernel 17x64 io
        blocks/1/b/kernel 64x5 ~io
        blocks/1/c/kernel 5x30 io
        blocks/1/norm/scale 30 -
        blocks/2/a/kernel 17x64 io
        blocks/2/b/kernel 64x5 ~io
        blocks/2/c/kernel 5x30 io
        blocks/2/norm/scale 30 -
        blocks/3/a/kernel 17x64 io
        blocks/3/b/kernel 64x5 ~io
        blocks/3/c/kernel 5x30 io
        blocks/3/norm/scale 30 -
        # in five
        blocks/0/a/kernel 17x64 io
        blocks/0/b/kernel 64x5 io
        blocks/0/c/kernel 5x30 io
        blocks/0/norm/scale 30 -
        blocks/1/a/kernel 17x64 io
        blocks/1/b/kernel 64x5 io
        blocks/1/c/kernel 5x30 io
        blocks/1/norm/scale 30 -
        blocks/2/a/kernel 17x64 io
        blocks/2/b/kernel 64x5 io
        blocks/2/c/kernel 5x30 io
        blocks/2/norm/scale 30 -
        blocks/3/a/kernel 17x64 io
        blocks/3/b/kernel 64x5 io
        blocks/3/c/kernel 5x30 io
        blocks/3/norm/scale 30 -
        blocks/4/a/kernel 17x64 io
        blocks/4/b/kernel 64x5 io
        blocks/4/c/kernel 5x30 io
        blocks/4/norm/scale 30 -
        # a layer of an embedding
        tok_embed/kernel 100x16 io
        tok_embed/bias 16 -
        a/kernel 16x32 io
        norm/scale 32 -
        # a layer of an embedding, and the head that gives what it takes
        tok_embed/kernel 100x16 ~io
        tok_embed/bias 16 -
        a/kernel 16x32 io
        norm/scale 32 -
        out/kernel 16x100 ~io
        # a reader whose taker is out of sight
        a/kernel 17x64 io
        up/kernel 64x5 ~io
        # fused, and nothing takes it
        n/scale 64 -
        a/kernel 17x64 io
        gate_up/kernel 64x10 ~io
        # fused, of a size that others have parts of
        n/scale 64 -
        a/kernel 17x64 io
        gate_up/kernel 64x128 io
        # an encoder and its decoder
        enc/kernel 64x32 ~io
        dec/kernel 32x64 ~io
        # an encoder and its decoder in a block
        block_0/enc/kernel 64x32 io
        block_0/dec/kernel 32x64 io
        # an encoder and its decoder by role
        up/kernel 64x32 io
        down/kernel 32x64 io
        # a square layer at the end
        a/kernel 17x64 io
        b/kernel 64x64 ~io
        # two square layers
        a/kernel 64x64 io
        b/kernel 64x64 io
        # two last layers of one shape
        a/kernel 17x64 io
        b/kernel 64x5 ~-
        c/kernel 64x5 ~-
        # a last layer of convolutions
        a/kernel 3x3x4x16 ~iiio
        conv/kernel 3x3x16x12 iiio
        # a last layer of convolutions into a flat layer
        conv1/kernel 3x3x4x16 iiio
        conv2/kernel 3x3x16x24 iiio
        a/kernel 216x10 ~-
        # into a flat layer of another size
        conv1/kernel 3x3x4x16 iiio
        conv2/kernel 3x3x16x24 ~iiio
        a/kernel 217x10 ~io
        # a flat layer behind few channels
        conv1/kernel 3x3x4x16 iiio
        conv2/kernel 3x3x16x7 ~iiio
        a/kernel 63x10 ~-
        # a flat layer behind eight channels
        conv1/kernel 3x3x4x16 iiio
        conv2/kernel 3x3x16x8 iiio
        a/kernel 72x10 ~-
        # four tables
        t/a/weight 100x16 ~-
        t/b/weight 200x16 ~-
        t/c/weight 300x16 ~-
        t/d/weight 400x16 ~-
        x/linear/weight 8x16 ~oi
        x/linear/bias 8 -
        y/linear/weight 100x200 ~oi
        y/linear/bias 100 -
        # three tables
        t/a/weight 100x16 ~oi
        t/b/weight 200x16 ~oi
        t/c/weight 300x16 ~-
        x/linear/weight 8x16 ~oi
        x/linear/bias 8 -
        y/linear/weight 100x200 ~oi
        y/linear/bias 100 -
        # a table by its rows, which nothing takes
        item/weight 1000x16 ~-
        x/linear/weight 8x16 ~oi
        x/linear/bias 8 -
        # a table beside no layer of its width
        item/weight 1000x16 ~oi
        x/linear/weight 8x9 ~oi
        x/linear/bias 8 -
        # a layer's name is no table's
        dense/weight 1000x16 ~oi
        x/linear/weight 8x16 ~oi
        x/linear/bias 8 -
        # a head that feeds a norm
        head/kernel 64x32 ~io
        norm/scale 32 -
        last/kernel 32x5 ~-
        # a head that feeds nothing
        head/kernel 64x32 -
        norm/scale 31 -
        last/kernel 31x5 ~-
        # a head of convolutions that another head reads
        conv_head/kernel 1x1x16x48 ~iiio
        classifier/kernel 48x5 -
        a/kernel 3x3x4x16 ~iiio
        # a head of a block
        blocks_0/head/kernel 64x64 -
        blocks_1/head/kernel 64x64 -
        # a head of a block whose outputs nothing takes
        blocks_0/head/kernel 64x5 ~io
        blocks_1/head/kernel 64x5 ~io
        # a head of a block with a multiple of outputs
        blocks_0/head/kernel 64x128 ~io
        blocks_1/head/kernel 64x128 ~io
        # a norm inside a head
        head/a/kernel 64x32 io
        head/norm/scale 32 -
        head/b/kernel 32x5 -
        # actions beside a single value
        torso/kernel 17x128 io
        actor/kernel 128x6 ~-
        critic/kernel 128x1 -
        # two axes of a convolution's name are no channels that get flat
        conv/kernel 16x12 ~io
        c/kernel 36x23 ~io
        # channels of a signal that get flat
        conv/kernel 3x8x12 iio
        c/kernel 36x23 ~-
        # two blocks, whose outputs weak evidence takes
        l/0/a/kernel 17x64 io
        l/1/a/kernel 17x32 io
        z_weight 5x64 ~-
        # a convolution as wide as what it reads, which nothing takes
        a/conv/kernel 1x1x16x16 ~iiio
        b/kernel 5x7 ~io
        # a convolution's channels take, its window does not; outputs first
        conv/weight 16x12x9x9 oiii
        c/kernel 64x9 ~-
        d/kernel 64x12 io
        # the same with the outputs last
        conv/kernel 9x9x12x16 iiio
        c/kernel 64x9 ~-
        d/kernel 64x12 io
        # the same of a transposed one
        deconv/w 9x9x16x12 iioi
        c/kernel 64x9 ~-
        d/kernel 64x12 ~io
        # the same in three dimensions
        conv/kernel 9x9x9x12x16 iiiio
        c/kernel 64x9 ~-
        d/kernel 64x12 io
        # kernels of one width beside a weight of PyTorch's name
        a/x/weight 12x16 ~oi
        a/k1/kernel 20x16 io
        a/k2/kernel 30x16 io
        a/k3/kernel 40x16 io
        z/kernel 12x20 ~io
        # experts of layers take by any axis
        n/scale 32 -
        layers/experts/w 3x12x32x16 ~bbio
        layers/ln/scale 3x32 -
        c/kernel 64x12 ~io
    """,
    "heads and tables": """
        # in a scope called head
        head/a/kernel 64x32 io
        head/b/kernel 32x5 -
        # in a scope called head, square
        head/a/kernel 32x32 io
        head/b/kernel 32x32 io
        # behind a norm in it
        head/a/kernel 64x32 io
        head/n/scale 32 -
        head/b/kernel 32x5 -
        # attention in it
        head/attention/kernel 64x32 io
        # queries in it
        head/q/kernel 64x4x8 ioo
        head/out/kernel 4x8x64 iio
        # scores that nothing takes
        score/kernel 64x5 -
        a/kernel 17x64 io
        # scores that a layer takes
        score/kernel 64x32 ~io
        a/kernel 32x64 io
        b/kernel 64x64 io
        # the only one of the vocabulary
        embedding 100x16 -
        a/kernel 16x100 -
        # one of two
        embedding 100x16 -
        a/kernel 16x100 ~-
        b/kernel 16x100 ~-
        # more features than words
        embedding 16x100 -
        a/kernel 100x16 ~-
        # as many features as words
        embedding 16x16 -
        a/kernel 16x16 ~-
        # positions are no vocabulary
        pos_embedding 100x16 -
        a/kernel 16x100 ~-
        # types are no vocabulary
        type_embedding 100x16 -
        a/kernel 16x100 ~-
        # an embedding with a bias is a layer
        embed/kernel 100x16 io
        embed/bias 16 -
        # an embedding of three axes
        embed/kernel 2x100x16 ~-
        a/kernel 16x16 io
        # three axes in an embedder
        embedder/dense/kernel 2x100x16 ~-
        a/kernel 16x16 io
        # a convolution in an embedder
        embedder/conv/kernel 3x100x16 ~iio
        a/kernel 16x16 ~io
        # four components out
        embed/a/b/table 100x16 -
        a/kernel 16x16 io
        # five components out
        embed/a/b/c/table 100x16 ?
        a/kernel 16x16 ~io
        # a head in a head that is as wide as a norm
        model/head/logits/kernel 8x16 ~-
        n/scale 16 -
        # a head of eight outputs that are taken
        a_head/kernel 16x8 ~-
        a/kernel 8x24 ~io
        # a convolution as a head, outputs first
        head/weight 8x16x3x3 -
        # a convolution as a head
        head/kernel 3x3x16x8 -
        # four axes without a window
        head/kernel 4x5x16x8 ~-
        # three axes, the first two alike
        head/kernel 4x4x8 ~-
        # the largest window
        head/kernel 31x31x16x8 -
        # a larger one
        head/kernel 32x32x16x8 ~-
        # the first and the third axis alike
        head/kernel 3x5x3x8 ~-
        # a window in three dimensions
        head/kernel 3x3x3x4x8 -
        # three axes of a convolution's name
        conv_head/kernel 4x5x8 -
        # a hidden layer in a head, outputs first
        head/a/weight 24x16 ~oi
        head/b/weight 5x24 -
        # three axes with a bias, which a head reads
        a_head/kernel 3x8x12 ~iio
        a_head/bias 12 -
        b_head/kernel 12x5 -
        # the same, which a layer reads
        a_head/kernel 3x8x12 ~-
        a_head/bias 12 -
        b/kernel 12x24 ~io
    """,
    "biases and norms": """
        # a bias of as many axes as its weight
        w 8x12 ~io
        b 8x12 ~io
        # a bias of fewer axes
        x/w 4x8x12 bio
        x/b 4x12 -
        # capitals
        x/W 8x12 io
        x/B 12 -
        # each bias has its weight's letter
        wq 8x12 ~io
        bq 4x12 ~io
        # a weight under a norm's name, with a bias
        layer_norm/weight 8x12 io
        layer_norm/bias 12 -
        # a weight under a norm's name, with a bias as long
        layer_norm/weight 8x12 ~-
        layer_norm/bias 8x12 -
        # a kernel under a norm's name
        layer_norm/kernel 8x12 io
        # a bias under a bias' name
        rel_bias/kernel 8x12 io
        # a table of biases
        rel_bias/table 8x12 -
        # a norm of channels by Haiku
        batch_norm/scale 1x1x1x16 -
        conv/kernel 3x3x8x16 iiio
        # b beside a
        x/a 8x4 ?
        x/b 4x8 ?
        y/kernel 8x8 ~io
        # b alone
        x/b 4x8 ?
        y/kernel 8x8 ~io
        # nothing but b
        x/b 4x8 -
        # a norm of four axes
        n/scale 1x1x1x16 -
        up/kernel 16x2x12 ~ioo
        # a norm of one layer
        n/scale 1x16 -
        up/kernel 1x16x24 bio
        down/kernel 1x24x16 bio
        # a bias with an axis of one behind
        a/weight 8x4x3 oii
        a/bias 8x1 -
        # a "b" of each layer beside a vector
        a/b 3x16 -
        n/scale 16 -
        # a norm with axes of one in front
        n/scale 1x1x16 -
        up/kernel 16x2x8 ~ioo
        # a norm with another axis in front
        n/scale 1x3x16 -
        up/kernel 16x2x8 ?
        # a layer in a module that is called a norm
        norm_out/linear/weight 16x24 ~oi
        # a layer in a module that is called a bias
        rel_bias/linear/weight 16x24 ~oi
        # a bias beside an array of no weight's name
        a/mystery 4x8x7 ?
        a/bias 7 -
        # the bias of a recurrent kernel
        n/scale 8 -
        a/recurrent_kernel 5x8x16 ~iio
        a/bias 16 -
    """,
    "pairs": """
        # a weight and a bias
        0/0 6x8 io
        0/1 8 -
        1/0 8x2 ~io
        1/1 2 -
        # with a third
        0/0 6x8 ~io
        0/1 8 -
        0/2 8 -
        # a bias of another length
        0/0 6x8 ~io
        0/1 7 -
        # a bias of more axes than one
        0/0 6x8 ~io
        0/1 2x8 ~io
        # the second is no weight
        0/1 6x8 ~io
        0/0 8 -
        # what is behind the weight has two axes
        a/0 4x8x8 ?
        a/1 5x8 ~io
    """,
    "bare paths": """
        # weight normalization
        a/weight_g 8x1 -
        a/weight_v 8x6 oi
        a/bias 8 -
        # weight normalization of a bare weight beside
        a/weight_g 8x1 -
        a/weight_v 8x6 ~oi
        a/weight 8x6 ~oi
        # halves of a complex array
        a/kernel/real 8x6 ~io
        a/kernel/imaginary 8x6 ~io
        a/bias 6 -
        # one half
        a/kernel/real 8x6 ?
        a/bias 6 -
        # a wrapped module
        a/_orig_mod/weight 8x6 oi
        a/_orig_mod/bias 8 -
        # a wrapper in a name
        my_orig_mod/weight 8x6 oi
        my_orig_mod/bias 8 -
        # dots
        a.kernel 8x6 ~io
        a.bias 6 -
        b.kernel 6x6 ~io
        # dots in some keys
        a.kernel 8x6 ~io
        b 6 -
        c 6x6 ~io
        # a name with two underscores
        a__kernel 8x6 io
        a__bias 6 -
        # a flat dictionary beside a nested one
        x/a.kernel 8x6 ~io
        x/a.bias 6 -
        y/kernel 6x6 ~io
        # an index that sounds like an embedding
        w[pos] 8x6 ~io
        # a separator in front
        .kernel 4x8 ~io
        .bias 8 -
        # the halves of one complex array, and nothing else
        a/kernel/real 8x16 ~io
        a/kernel/imaginary 8x16 ~io
    """,
    "stacks by norms": """
        # in front
        n/scale 3x16 -
        a/kernel 3x16x24 bio
        b/kernel 3x24x16 bio
        # two axes in front
        n/scale 2x3x16 -
        a/kernel 2x3x16x24 bbio
        b/kernel 2x3x24x16 bbio
        # on the second axis
        n/scale 16x3 -
        a/kernel 16x3x24 ibo
        b/kernel 24x3x16 ibo
        # one kernel without the stack
        n/scale 3x16 -
        a/kernel 3x16x24 ?
        b/kernel 5x24x16 ?
        # norms alone
        n/scale 3x16 -
        a/kernel 16x24 io
        # a norm inside of a scope, and an unstacked one outside
        layers/n/scale 3x16 -
        layers/a/kernel 3x16x24 ?
        n/scale 16 -
        a/kernel 16x24 ~io
        # an unstacked norm inside
        layer/n/scale 16 -
        layer/a/kernel 16x2x24 ~ioo
        # a vector beside the stack
        n/scale 3x16 -
        a/kernel 3x16x24 ?
        table/kernel 3x7 ~io
        # as many layers as features, on both axes
        n/scale 16x16 -
        a/kernel 16x16x24 bio
        b/kernel 16x24x16 bio
        # which axis is shown by the output
        n/scale 4x4 -
        a/kernel 4x4x8 bio
        b/kernel 4x8x4 bio
        # which axis is shown by the output, on the second
        n/scale 4x4 -
        a/kernel 4x4x8 ibo
        b/kernel 8x4x4 ibo
        # a bias that the stack does not allow
        n/scale 3x16 -
        a/kernel 3x16x24 ~iio
        a/bias 24 -
        # a bias that the stack allows
        n/scale 3x16 -
        a/kernel 3x16x24 bio
        a/bias 3x24 -
        # a norm of a query says nothing of the width
        n/scale 3x16 -
        q_norm/scale 3x24 -
        q/kernel 3x16x24 bio
        up/kernel 3x24x40 bio
        # an unstacked norm beside a stacked one
        n/scale 3x16 -
        m/scale 16 -
        a/kernel 3x16x24 bio
        b/kernel 3x24x16 bio
        # stacked norms beside matrices
        a/norm/scale 4x16 -
        a/up_w 4x16 ~io
    """,
    "stacks by biases": """
        # in front
        a/kernel 3x8x12 bio
        a/bias 3x12 -
        b/kernel 3x12x8 bio
        b/bias 3x8 -
        # two axes in front
        a/kernel 2x3x8x12 bbio
        a/bias 2x3x12 -
        # on the second axis
        a/kernel 8x3x12 ibo
        a/bias 12x3 -
        b/kernel 12x3x7 ibo
        b/bias 7x3 -
        # heads of a query in front
        a/query/kernel 3x8x12 oio
        a/query/bias 3x12 -
        n/scale 8 -
        # heads in a stack
        a/query/kernel 5x8x3x4 bioo
        a/query/bias 5x3x4 -
        a/out/kernel 5x3x4x8 biio
        a/out/bias 5x8 -
        # positions of a local convolution in a stack
        a/kernel 5x3x8x12 bbio
        a/bias 5x3x12 -
        b/kernel 5x8x12 bio
        b/bias 5x12 -
        # a flat bias of an unstacked layer
        a/kernel 3x8x12 ~iio
        a/bias 12 -
        b/kernel 3x12x8 ?
        # several output axes, outputs first
        a/weight/0 3x4x5x16 ~booi
        a/bias/0 3x4x5 -
        b/weight/0 3x16x5 boi
        b/bias/0 3x16 -
        # a bias of a convolution of Equinox
        a/weight 12x8x3x3 oiii
        a/bias 12x1x1 -
        # no kernel of three axes
        a/kernel 8x12 io
        a/bias 12 -
        # a weight of PyTorch in a stack
        a/weight 5x12x8 boi
        a/bias 5x12 -
        b/weight 5x7x12 ~boi
        b/bias 5x7 -
        # a bias of two output axes, with an axis of one behind
        weight/0 4x8x64 ~ooi
        bias/0 4x8x1 -
        # outputs behind under PyTorch's name
        a/weight/0 5x16x3x4 ~bioo
        a/bias/0 5x3x4 -
        b/weight/0 5x12x16 boi
        b/bias/0 5x12 -
        # a bias on no axis
        conv_tr/weight 48x8x8 ~ioi
        conv_tr/bias 2x8 -
        # seven equal blocks
        b/0/kernel 6x6 ~io
        b/1/kernel 6x6 ~io
        b/2/kernel 6x6 ~io
        b/3/kernel 6x6 ~io
        b/4/kernel 6x6 ~io
        b/5/kernel 6x6 ~io
        b/6/kernel 6x6 ~io
        # two of one scope, of which one knows no layers
        m/w1 3x8x12 ~bio
        m/b1 3x12 -
        m/w2 3x5x8 iio
        m/b2 8 -
        # two of one scope, both with layers
        m/w1 3x8x12 ~bio
        m/b1 3x12 -
        m/w2 3x5x8 bio
        m/b2 3x8 -
        # two of one scope without layers
        m/w1 3x8x12 iio
        m/b1 12 -
        m/w2 3x12x8 ~iio
        m/b2 8 -
        # layers on axis 1, and experts with biases there
        mlp/wo/kernel 128x3x64 ibo
        moe/wi_0 4x3x64x32 bbio
        moe/wi_0_bias 4x3x32 -
    """,
    "stacks by shapes": """
        # two kernels that fit each other
        a/kernel 3x8x12 ~bio
        b/kernel 3x12x8 ~bio
        # two kernels that don't
        a/kernel 3x8x12 ?
        b/kernel 3x7x9 ?
        # of which one has other layers
        a/kernel 3x8x12 ?
        b/kernel 4x12x8 ?
        # on the second axis
        a/kernel 8x3x12 ~ibo
        b/kernel 12x3x8 ~ibo
        # on the second axis, equal in front
        a/kernel 8x3x12 ?
        b/kernel 8x3x8 ?
        # a kernel alone
        a/kernel 3x8x8 ?
        # beside a flat layer
        a/kernel 3x8x12 ?
        b/kernel 3x12x8 ?
        c/kernel 8x12 io
        # beside a flat array of three rows
        a/kernel 3x8x12 ~bio
        b/kernel 3x12x8 ~bio
        c/mystery 3x12 -
        # beside a vector
        a/kernel 3x8x12 ~bio
        b/kernel 3x12x8 ~bio
        c/mystery 12 -
        # beside a convolution
        a/kernel 3x8x12 ?
        b/kernel 3x12x8 ?
        conv/kernel 3x8x8 ~iio
        # beside a name that says nothing
        a/kernel 3x8x12 ?
        b/kernel 3x12x8 ?
        c/mystery 3x8x8 ?
        # where all that fits is of length one
        a/kernel 3x1x12 -
        b/kernel 3x12x1 -
        # PyTorch's, on the second axis
        a/weight 8x3x12 ?
        b/weight 12x3x8 ?
        # PyTorch's, in front
        a/weight 3x8x12 ~boi
        b/weight 3x12x8 ~boi
        # a query and an output of one shape
        a/query/kernel 3x8x8 ?
        a/out/kernel 3x8x8 ?
        # attention whose heads may come first
        a/query/kernel 3x8x12 ?
        a/out/kernel 3x12x8 ?
        # the same beside other layers
        a/query/kernel 3x8x12 ~bio
        a/out/kernel 3x12x8 ~bio
        a/up/kernel 3x8x20 ~bio
        a/down/kernel 3x20x8 ~bio
        # half of an attention
        a/query/kernel 3x8x12 ?
        a/key/kernel 3x8x12 ?
        # queries, keys and an output in a stack
        a/query/kernel 3x8x4x2 ~bioo
        a/key/kernel 3x8x4x2 ~bioo
        a/out/kernel 3x4x2x8 ~biio
        # an inner scope that allows less
        layers/a/kernel 3x8x12 ~bio
        layers/b/kernel 3x12x8 ~bio
        c/kernel 5x6x7 ?
        d/kernel 5x7x6 ?
        # one around that has another opinion
        x/a/kernel 3x8x12 ?
        x/b/kernel 3x12x8 ~iio
        x/b/bias 8 -
        # as many heads as inputs, beside other layers
        a/query/kernel 4x4x6 ioo
        a/out/kernel 4x6x4 iio
        a/up/kernel 4x4x9 ?
        a/down/kernel 4x9x4 ?
        # beside a matrix
        l/a/kernel 3x8x16 ?
        l/b/kernel 3x16x8 ?
        l/c/kernel 3x8 io
        # a query three scopes away from the output
        a/b/c/query/kernel 16x2x8 ~ioo
        a/out/kernel 2x8x16 ~iio
        # arrays that are all stacked, with names of experts
        l/gate_weight 4x64x8 ~boi
        l/wo_weight 4x8x256x64 ~bbio
        l/norm/wi_0_weight 4x64 -
    """,
    "orders": """
        # PyTorch's names with inputs first by roles and widths
        norm/scale 16 -
        q_proj/weight 16x24 io
        o_proj/weight 24x16 io
        up/weight 16x40 io
        down/weight 40x16 io
        # the same in a stack
        norm/scale 3x16 -
        up/weight 3x16x40 bio
        down/weight 3x40x16 bio
        # one for and one against
        norm/scale 16 -
        up/weight 16x40 ~oi
        down/weight 16x40 oi
        # roles that the width does not touch
        norm/scale 15 -
        up/weight 16x40 ~oi
        down/weight 40x16 ~oi
        # a window of one behind
        a/weight 16x8x1 oii
        b/weight 24x16x1 ~oii
        # numbered, each takes what the one before gives
        l/0/weight 8x16 ~io
        l/1/weight 16x24 ~-
        # numbered, outputs first
        l/0/mystery 16x8 ~oi
        l/1/mystery 24x16 ~oi
        # numbered in two blocks
        l/0/0/mystery 16x8 ~oi
        l/0/1/mystery 24x16 ~oi
        l/1/0/mystery 16x8 ~oi
        l/1/1/mystery 24x16 ~oi
        # a third that does not fit
        l/0/mystery 16x8 ~io
        l/1/mystery 24x16 ~io
        l/2/mystery 5x7 ~io
        # one of PyTorch's name and two of another
        a/weight 16x8 ~-
        b/kernel 8x16 ~io
        moe/up 4x6x12 ~bio
        # ten comes after two
        p/0 4x3 ~oi
        p/1 5x4 ~oi
        p/2 6x5 ~oi
        p/10 7x6 ~-
        # one of two turns
        p/0/weight 3x4 ~-
        p/1/weight 4x5 ~oi
        p/2/weight 6x7 ~oi
        # a role and a width speak, a role alone does not
        ln/weight 16 -
        q/weight 16x24 ~io
        up/weight 7x9 ~oi
        gate/weight 7x9 ~oi
        # two roles against one
        ln/weight 16 -
        q/weight 16x24 ~oi
        v/weight 24x16 oi
        k/weight 24x16 oi
    """,
    "first convolutions": """
        # a second takes its channels
        a/0/kernel 9x1x16 ?
        a/1/kernel 3x16x8 ?
        # a second is depthwise
        a/0/kernel 9x1x16 ~-
        a/1/kernel 3x1x16 ~-
        a/0/bias 16 -
        a/1/bias 16 -
        # a second has a window of one
        a/0/kernel 9x1x16 ~-
        a/0/bias 16 -
        a/1/kernel 1x16x8 ~iio
        a/1/bias 8 -
        # a second of another number of axes
        a/0/kernel 9x1x16 ~-
        a/0/bias 16 -
        a/1/kernel 3x3x16x8 iiio
        a/1/bias 8 -
        # it is the second
        a/0/kernel 3x4x16 ~iio
        a/0/bias 16 -
        a/1/kernel 9x1x16 ~-
        a/1/bias 16 -
        a/2/kernel 3x16x8 ~iio
        a/2/bias 8 -
        # PyTorch's
        a/0/weight 16x1x9 ?
        a/1/weight 8x16x3 ?
        # PyTorch's, of networks side by side
        d/0/0/weight 16x1x9 ?
        d/0/1/weight 8x16x3 ?
        d/1/0/weight 16x1x9 ?
        d/1/1/weight 8x16x3 ?
        # PyTorch's, repeated
        d/0/0/weight 16x1x9 ~-
        d/1/0/weight 16x1x9 ~-
        # PyTorch's, at different places
        d/0/weight 16x1x9 ~oii
        d/1/weight 16x1x9 ~oii
        # ten comes after two
        c/2/weight 8x1x5 ?
        c/10/weight 16x8x5 ?
        # behind a matrix
        c/0/weight 8x16 ~oi
        c/1/weight 8x1x5 ?
        c/2/weight 16x8x5 ?
        # two channels that are taken
        c/0/weight 2x1x5 ?
        c/1/weight 16x2x5 ?
        # as many channels as another one makes of two
        a/weight 8x2x3x3 ~oiii
        b/weight 8x1x5x5 -
        # in blocks of blocks
        s/0/b/1/c/3/weight 8x1x5 ~-
        s/1/b/1/c/3/weight 8x1x5 ~-
        # the first of the second block, by name
        b/0/conv_0/weight 8x1x5 oii
        b/0/conv_1/weight 16x8x5 oii
        b/1/conv_0/weight 8x1x5 ~-
        b/1/conv_1/weight 16x8x5 oii
    """,
    "windows behind": """
        # the largest
        a/kernel 64x64x31x31 oiii
        # as large as the channels
        a/kernel 8x16x8x8 ?
        # larger than the channels
        q/kernel 64x3x8x8 ?
    """,
}
